"""Weights: every form that loads, and every one that is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import MLPBlock

from onnxdistill.errors import WeightsError
from onnxdistill.networks import build_network
from onnxdistill.networks.weights import load_weights

State = dict[str, Any]


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).eval()


def refusal(path: Path, network: nn.Module | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        load_weights(network or small(), "nets:small", str(path))
    message = str(caught.value)
    assert message.isprintable()  # no line break, and no colours of a terminal
    return message


def saved(path: Path, what: object) -> Path:
    torch.save(what, path)
    return path


def assert_same(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: network.state_dict(),
        lambda network: {"state_dict": network.state_dict(), "epoch": 3},
        lambda network: {"model_state_dict": network.state_dict(), "optimizer": {"lr": 0.1}},
        lambda network: {"epoch": 3, "model": network.state_dict()},
        lambda network: nn.DataParallel(network).state_dict(),
        lambda network: {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "checkpoint", "tutorial", "torchvision", "parallel", "without counters"],
)
def test_forms_that_load(tmp_path: Path, wrap: Callable[[nn.Module], State]) -> None:
    network = small(1)
    load_weights(network, "nets:small", str(saved(tmp_path / "w.pt", wrap(small(2)))))
    assert_same(network, small(2))


def test_a_network_with_a_part_named_module_keeps_its_names(tmp_path: Path) -> None:
    def wrapped(seed: int) -> nn.Module:
        return nn.ModuleDict({"module": small(seed)})

    for trained in (wrapped(2), nn.DataParallel(wrapped(2))):
        network = wrapped(1)
        load_weights(network, "nets:wrapped", str(saved(tmp_path / "w.pt", trained.state_dict())))
        assert_same(network, wrapped(2))


def test_a_prefix_of_some_names_only_is_another_architecture(tmp_path: Path) -> None:
    state = {("module." if name.startswith("0") else "") + name: value for name, value in small().state_dict().items()}
    assert "it has 2 that the network lacks (module.0" in refusal(saved(tmp_path / "w.pt", state))


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({0: torch.ones(1)}, "under the int 0, not under a name"),
        ({"0.weight": 3.5}, "'0.weight' is a float, not a tensor"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        ({}, "it lacks 8 of the network's tensors"),
    ],
)
def test_other_things_than_a_state_dict(tmp_path: Path, state: object, part: str) -> None:
    assert part in refusal(saved(tmp_path / "w.pt", state))


@pytest.mark.parametrize(
    ("name", "value"), [("0.weight", float("nan")), ("3.bias", float("inf")), ("1.running_var", float("nan"))]
)
def test_weights_that_are_not_finite_are_named(tmp_path: Path, name: str, value: float) -> None:
    state = small().state_dict()
    state[name].flatten()[0] = value
    assert f"NaN or infinity in the tensor {name}" in refusal(saved(tmp_path / "w.pt", state))


def test_an_infinite_mask_is_no_damage(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("mask", torch.full((2, 2), float("-inf")))
    load_weights(network, "nets:masked", str(saved(tmp_path / "w.pt", network.state_dict())))


def test_shapes_that_differ_are_named(tmp_path: Path) -> None:
    state = small().state_dict() | {"3.weight": torch.ones(5, 4)}
    assert "3.weight is (5, 4) there and (2, 4) here" in refusal(saved(tmp_path / "w.pt", state))


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_give_no_advice_to_run_code(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save(small(), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for content in (whole, whole[:-40], whole[:300], whole[:1], b"", b"text\n", b"PK\x03\x04" + whole[9:]):
        path.write_bytes(content)
        message = refusal(path)
        assert f"{path} cannot be read as a PyTorch state dict" in message
        assert "weights_only" not in message


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    trained = build_network("torchvision:mnasnet0_5", 10, 2)
    network = build_network("torchvision:mnasnet0_5", 10, 1)
    load_weights(network, "torchvision:mnasnet0_5", str(saved(tmp_path / "w.pt", trained.state_dict())))
    assert_same(network, trained)
    with pytest.raises(WeightsError, match=r"cannot be loaded into the MNASNet: ValueError: version should be"):
        load_weights(
            network, "torchvision:mnasnet0_5", str(saved(tmp_path / "w.pt", dict(trained.state_dict().items())))
        )


def test_modules_that_read_old_names_may(tmp_path: Path) -> None:
    trained, network = MLPBlock(3, 4, 0.0), MLPBlock(3, 4, 0.0)
    old = {name.replace("0.", "linear_1.").replace("3.", "linear_2."): v for name, v in trained.state_dict().items()}
    load_weights(network, "nets:mlp", str(saved(tmp_path / "w.pt", old)))
    assert_same(network, trained)


@pytest.mark.parametrize("model", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(tmp_path: Path, model: str) -> None:
    torch.manual_seed(2)
    trained = torchvision.models.get_model(model, weights=None, num_classes=10, aux_logits=True, init_weights=False)
    network = build_network(f"torchvision:{model}", 10, 1)
    load_weights(network, f"torchvision:{model}", str(saved(tmp_path / "w.pt", trained.state_dict())))
    state = network.state_dict()
    assert state.keys() < trained.state_dict().keys()
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in state.items())


def test_old_names_of_densenet(tmp_path: Path) -> None:
    trained, network = (build_network("torchvision:densenet121", 10, seed) for seed in (2, 1))
    old = {re.sub(r"(denselayer\d+\.[a-z]+)([12])\.", r"\1.\2.", k): v for k, v in trained.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    load_weights(network, "torchvision:densenet121", str(saved(tmp_path / "w.pt", old)))
    assert_same(network, trained)


def test_unknown_names_of_weights() -> None:
    with pytest.raises(WeightsError, match=r"no weights 'V9' for resnet18.*IMAGENET1K_V1"):
        load_weights(small(), "torchvision:resnet18", "V9")


def test_a_damaged_download_is_told_from_a_missing_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(WeightsError, match=r"cannot be downloaded: URLError"):
        load_weights(small(), "torchvision:resnet18", "DEFAULT")
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "hub" / "checkpoints" / name).write_bytes(b"half")
    with pytest.raises(WeightsError, match=r"arrived damaged \(\w+\).*Delete their file"):
        load_weights(small(), "torchvision:resnet18", "DEFAULT")


def test_a_head_of_other_classes_stays_new(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pt", small(2).state_dict())
    network = small(1)
    network[3] = nn.Linear(4, 5)  # type: ignore[index]  # it is a Sequential
    head = [parameter.clone() for parameter in network[3].parameters()]  # type: ignore[index]
    load_weights(network, "nets:small", str(file), new_head=True)
    assert_same(network[:3], small(2)[:3])  # type: ignore[index]
    assert all(torch.equal(one, other) for one, other in zip(head, network[3].parameters(), strict=True))  # type: ignore[index]


def test_a_new_head_is_no_excuse_for_another_network(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pt", small(2).state_dict())
    with pytest.raises(WeightsError, match=r"no layer whose number of outputs differs.*Leave out teacher\.new_head"):
        load_weights(small(1), "nets:small", str(file), new_head=True)
    wider = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5)).eval()
    with pytest.raises(WeightsError, match="1 shapes differ"):
        load_weights(wider, "nets:small", str(file), new_head=True)
