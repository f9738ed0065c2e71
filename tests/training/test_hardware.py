"""Where a training runs, and in which type."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from onnxdistill.errors import UsageError
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, train
from onnxdistill.training.hardware import BFLOAT16_CAPABILITIES, Hardware, copied, notes_on_devices
from tests.training.small import small_network, table

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch has no GPU")


def test_types_of_the_processor() -> None:
    fast = any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16_CAPABILITIES)
    found = {wanted: Hardware.of(table(precision=wanted)) for wanted in ("auto", "float32", "bfloat16")}
    assert {one.device for one in found.values()} == {torch.device("cpu")}
    assert found["auto"].dtype == (torch.bfloat16 if fast else torch.float32)
    assert (found["float32"].dtype, found["bfloat16"].dtype) == (torch.float32, torch.bfloat16)


def test_a_copy_is_another_whatever_it_is_in() -> None:
    tensor, of_parameters = torch.zeros(2), torch.nn.Parameter(torch.ones(1))
    state = {"a": tensor, "b": [{"c": of_parameters}], "d": (1, None, "text")}
    other = copied(state)
    tensor.add_(1)
    with torch.no_grad():
        of_parameters.add_(1)
    assert other["a"].tolist() == [0.0, 0.0]
    assert other["b"][0]["c"].tolist() == [1.0]
    assert other["d"] == (1, None, "text")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
def test_a_gpu_that_is_not_there_is_refused(digits: Classification) -> None:
    wanted = table(device="cuda")
    with pytest.raises(UsageError, match="device = 'cuda' asks for a GPU, and this installation of torch cannot"):
        notes_on_devices([wanted])
    with pytest.raises(UsageError, match="device = 'cuda' asks for a GPU"):
        train(small_network(), digits, wanted, 0, Objective())
    assert notes_on_devices([table()]) == []


@needs_gpu
@pytest.mark.parametrize("changes", [{}, {"average": 0.9}, {"micro_batch": 16}, {"crop_pad": 1, "views": 2}])
def test_a_gpu_comes_to_nearly_the_same_weights(digits: Classification, changes: dict[str, object]) -> None:
    few = Classification(dataclasses.replace(digits.splits, train=digits.splits.train.subset(np.arange(320))))
    views = int(str(changes.pop("views", 0)))
    guidance = Guidance((small_network(1),), views)
    network = small_network()
    network.get_submodule("4").p = 0.0  # its numbers differ
    one, other = (
        train(network, few, table(device=device, **changes), 0, Objective(soft_weight=1.0), guidance)
        for device in ("cpu", "cuda")
    )
    assert {tensor.device.type for tensor in other.network.state_dict().values()} == {"cpu"}
    for ours, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-2)


@needs_gpu
def test_a_gpu_that_is_left_idle_is_told_of() -> None:
    (note,) = notes_on_devices([table()])
    assert "set device = 'cuda'" in note
    assert notes_on_devices([table(device="cuda")]) == []
