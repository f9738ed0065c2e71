"""A student's file brings the student back, and what is none is explained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxdistill import load_student
from onnxdistill.errors import NetworkError, OutputError, WeightsError
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.networks import build_network
from onnxdistill.student import save_student

OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8 * 16, num_classes)

    def forward(self, x):
        return self.head(torch.relu(self.depthwise(torch.relu(self.stem(x)))).flatten(1))

def own(num_classes):
    return Own(num_classes)
"""


def smaller(network: nn.Module, example: Tensor) -> nn.Module:
    analysis = analyse_channels(network, example)
    kept = {group.name: np.arange(group.size - 3) for group in analysis.free}
    return remove_channels(network, analysis, kept, example)


def test_a_network_of_the_users_own_comes_back(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    name, example = f"{tmp_path / 'own.py'}:own", torch.rand(2, 1, 8, 8)
    student = smaller(build_network(name, 7, 3), example)
    save_student(student, name, 7, tmp_path / "student.pt", example)
    with pytest.raises(NetworkError, match=r"If you trust it, load it with load_student\(.*network='.*own.py:own'"):
        load_student(tmp_path / "student.pt")
    loaded = load_student(tmp_path / "student.pt", network=name)
    assert loaded.get_submodule("depthwise").groups == 5
    with torch.inference_mode():
        assert torch.equal(loaded(example), student(example))
    assert not loaded.training
    # It is an ordinary module: it can be cut again, and saved again.
    save_student(smaller(loaded, example), name, 7, tmp_path / "again.pt", example)
    assert load_student(tmp_path / "again.pt", network=name).get_submodule("depthwise").groups == 2


def test_what_is_no_student_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    with pytest.raises(WeightsError, match="does not exist"):
        load_student(path)
    path.write_text("text")
    with pytest.raises(WeightsError, match="cannot be read as a student"):
        load_student(path)
    torch.save(build_network("digits-resnet", 10, 0).state_dict(), path)
    with pytest.raises(WeightsError, match="is not a student of this version"):
        load_student(path)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    torch.save(build_network("digits-resnet", 10, 0), tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match="cannot be read as a student"):
        load_student(tmp_path / "whole.pt")


def test_a_state_outside_of_the_weights_is_found(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped

    network, example = build_network("digits-resnet", 10, 0), torch.rand(2, 1, 8, 8)
    with pytest.raises(NetworkError):
        save_student(Twice(network), "digits-resnet", 10, tmp_path / "student.pt", example)
    network.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    with pytest.raises(NetworkError, match="computes something else"):
        save_student(network, "digits-resnet", 10, tmp_path / "student.pt", example)
    assert list(tmp_path.iterdir()) == []


def test_code_that_has_changed_since_is_found(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    name, example = f"{tmp_path / 'own.py'}:own", torch.rand(2, 1, 8, 8)
    save_student(smaller(build_network(name, 7, 3), example), name, 7, tmp_path / "student.pt", example)
    (tmp_path / "own.py").write_text(OWN.replace("torch.relu", "torch.tanh"))
    with pytest.raises(NetworkError, match="has changed since"):
        load_student(tmp_path / "student.pt", network=name)


def test_lazy_layers_come_back(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text(
        "from torch import nn\n"
        "def lazy():\n    return nn.Sequential(nn.LazyConv2d(6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))\n"
    )
    name, example = f"{tmp_path / 'lazy.py'}:lazy", torch.rand(2, 1, 8, 8)
    network = build_network(name, 3, 0)
    network(example)
    student = smaller(network, example)
    save_student(student, name, 3, tmp_path / "student.pt", example)
    with torch.inference_mode():
        assert torch.equal(load_student(tmp_path / "student.pt", network=name)(example), student(example))


def test_a_single_damaged_bit_is_found(tmp_path: Path) -> None:
    path, example = tmp_path / "student.pt", torch.rand(2, 1, 8, 8)
    network = build_network("digits-resnet", 10, 0)
    save_student(network, "digits-resnet", 10, path, example)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"cannot be read as a student \(checksum of"):
        load_student(path)


def test_a_disk_that_is_full_is_explained(tmp_path: Path) -> None:
    network, example = build_network("digits-resnet", 10, 0), torch.rand(2, 1, 8, 8)
    (tmp_path / "student.pt.new").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"student.pt cannot be written: No space left"):
        save_student(network, "digits-resnet", 10, tmp_path / "student.pt", example)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="does not exist"):
        save_student(network, "digits-resnet", 10, tmp_path / "none" / "student.pt", example)
