"""Quantization-aware distillation by the training engine: what coarse integers cost comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.fakequant import FakeQuantized
from onnxdistill.quantization.scheme import Scheme
from onnxdistill.quantization.workshop import Form, Workshop
from onnxdistill.recipe import DistillTable, ExportTable, TrainingTable
from onnxdistill.stages.distill import distill
from onnxdistill.stages.export import export
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import TrainingStatus, train

# 256 levels become 6.
COARSER = 48


@pytest.fixture(scope="module")
def teacher(digits: Classification) -> nn.Module:
    """Trained for a second."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        network = nn.Sequential(*convolutions, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    settings = TrainingTable(epochs=5, batch_size=32, precision="float32")
    return train(network, digits, settings, 0, Objective()).network


@pytest.fixture(scope="module")
def files(digits: Classification, teacher: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file with coarse integers, and the float one."""
    folder = tmp_path_factory.mktemp("digits")
    source, path = folder / "float.onnx", folder / "coarse.onnx"
    names = {"input_name": digits.input_name, "output_name": digits.output_name}
    export(teacher, digits.example_input(3), source, ExportTable(), **names)
    workshop = Workshop(source, lambda: [{digits.input_name: digits.example_input(64).numpy()}])
    workshop.write(Form(Scheme("uint8", per_channel=False)), path)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        # The scale of a bias is a product of two.
        factor = COARSER**2 if "bias_quantized" in tensor.name else COARSER
        if tensor.name.endswith("_scale"):
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(factor), tensor.name))
        elif values.dtype in (np.uint8, np.int8, np.int32):
            tensor.CopyFrom(numpy_helper.from_array(np.round(values / factor).astype(values.dtype), tensor.name))
    onnx.save(model, path)
    return path, source


def table(**changes: object) -> DistillTable:
    values = {"epochs": 4, "batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0, "precision": "float32"}
    return DistillTable.model_validate(values | changes)


def accuracy(path: Path, task: Classification) -> float:
    return task.score(open_session(path, SessionSettings()).run, "test").value


def test_what_coarse_integers_cost_comes_back(
    digits: Classification, teacher: nn.Module, files: tuple[Path, Path], tmp_path: Path
) -> None:
    path, source = files
    before, whole = accuracy(path, digits), accuracy(source, digits)
    result = distill(FakeQuantized.from_file(path), [teacher], digits, table(), 0)
    assert isinstance(result.network, FakeQuantized)
    result.network.write(tmp_path / "trained.onnx")
    after = accuracy(tmp_path / "trained.onnx", digits)
    assert before < whole - 8
    assert after > before + 0.6 * (whole - before)
    ratios = [scale.log_ratio.exp().detach() for scale in result.network.scales.values()]
    assert max(float((ratio - 1).abs().max()) for ratio in ratios) > 0.01  # scales were trained, too
    # What was validated is what is in the file.
    runner = open_session(tmp_path / "trained.onnx", SessionSettings()).run
    assert abs(digits.score(runner, "validation").value - result.best_score) <= 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_that_goes_on_comes_to_the_same_bits(
    digits: Classification, teacher: nn.Module, files: tuple[Path, Path], tmp_path: Path, optimizer: str
) -> None:
    settings = table(epochs=2, average=0.9, optimizer=optimizer, learning_rate=1e-3)

    def run(checkpoint: Path, last_epoch: int = 99) -> dict[str, Tensor]:
        def stop(status: TrainingStatus) -> None:
            if status.epoch_done and status.epoch == last_epoch:
                raise InterruptedError

        network = FakeQuantized.from_file(*files)
        return distill(network, [teacher], digits, settings, 0, stop, checkpoint).network.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "ended", last_epoch=2)
    resumed = run(tmp_path / "ended")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_bfloat16_trains_as_well(digits: Classification, teacher: nn.Module, files: tuple[Path, Path]) -> None:
    result = distill(FakeQuantized.from_file(*files), [teacher], digits, table(epochs=1, precision="bfloat16"), 0)
    assert result.best_epoch == 1
