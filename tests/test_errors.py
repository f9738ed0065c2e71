"""What an error comes from, and memory that does not suffice, whoever has words for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from onnxdistill.errors import is_of_memory, origins
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.structure import rebuild, structure_of
from onnxdistill.networks import build_network
from onnxdistill.networks.published import published_state
from onnxdistill.recipe import ExportTable
from onnxdistill.stages.export import export
from tests.compress.commands import run_here

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


def raised(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the point is which
        work()
    return caught.value


def in_other_words(how: str) -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        if how == "from":
            raise ValueError("too large") from error
        if how == "while":
            raise ValueError("too large")  # noqa: B904
        raise ValueError("too large") from None


@pytest.mark.parametrize(("how", "told"), [("from", True), ("while", True), ("instead", False)])
def test_memory_in_other_words(how: str, told: bool) -> None:
    error = raised(lambda: in_other_words(how))
    assert type(error) is ValueError
    assert is_of_memory(error) is told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError(ALLOCATOR), True),
        (RuntimeError("std::bad_alloc"), True),
        (ValueError("std::bad_alloc"), False),
        (RuntimeError("a tensor of another shape"), False),
    ],
)
def test_memory_in_torchs_words(error: Exception, told: bool) -> None:
    assert is_of_memory(error) is told


def test_errors_that_come_from_each_other_end() -> None:
    one, other = ValueError("a"), ValueError("b")
    one.__cause__, other.__cause__ = other, one
    assert list(origins(one)) == [one, other]
    assert not is_of_memory(one)
    one.__cause__ = one
    assert list(origins(one)) == [one]


class Hungry(nn.Module):
    """Wants more than there is, in the words of torch, where nothing else is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(ALLOCATOR)


def test_memory_is_no_fault_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.zeros(2, 1, 8, 8)
    assert is_of_memory(raised(lambda: analyse_channels(Hungry().eval(), image)))
    assert is_of_memory(raised(lambda: export(Hungry().eval(), image, tmp_path / "a.onnx", ExportTable())))
    assert list(tmp_path.iterdir()) == []

    def no_room(*_: object, **__: object) -> None:
        raise RuntimeError(ALLOCATOR)

    network = build_network("digits-resnet", 10, 0).eval()
    structure, state = structure_of(network, network), network.state_dict()
    monkeypatch.setattr(nn.Module, "load_state_dict", no_room)
    assert is_of_memory(raised(lambda: rebuild(network, structure, state)))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_room)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_room)
    assert is_of_memory(raised(lambda: published_state("torchvision:resnet18", "DEFAULT")))


@pytest.mark.parametrize("when", ["import", "call"])
def test_memory_that_a_users_file_does_not_get_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    fails = """
try:
    raise MemoryError
except MemoryError:
    raise ValueError("too large")
"""
    inner = fails.replace("\n", "\n    ")
    (tmp_path / "net.py").write_text(fails if when == "import" else f"def make():{inner}\n")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'name = "x"\n[data]\nsource = "digits"\n[teacher]\nnetwork = "{tmp_path}/net.py:make"\n')
    process = run_here(monkeypatch, capsys, "profile", recipe, "--out", tmp_path / "device.json")
    assert process.returncode == 2
    assert process.stderr.startswith("Error: The memory of this machine does not suffice.")
    assert process.stderr.count("\n") == 1
