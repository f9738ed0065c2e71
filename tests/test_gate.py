"""The gate measures for real: less work is faster, and the same file is not faster than itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.device.host import read_host
from onnxdistill.device.measuring.compare import NEEDED_SPEEDUP
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.places import Here, key_of
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import UsageError
from onnxdistill.gate import FileGate, Gate, describe, measurably_faster, settings_of, verifying_settings
from onnxdistill.journal import Journal
from onnxdistill.recipe import ExportTable, Recipe
from onnxdistill.stages.export import export
from onnxdistill.tasks.classification import Classification


def recipe(**tables: object) -> Recipe:
    return Recipe.model_validate(
        {"name": "gate", "data": {"source": "digits"}, "teacher": {"network": "digits-resnet"}, **tables}
    )


def test_a_layer_with_a_sixteenth_of_the_work_is_faster(digits: Classification, tmp_path: Path) -> None:
    wide, narrow = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 4, 3, padding=1)
    for quantized in ({}, {"quantize": {}}):
        gate = Gate(recipe(**quantized), Here(), digits, tmp_path, Journal(tmp_path / "run"))
        ratio = gate.layer_speedup(wide, narrow, (64, 16, 16))
        assert measurably_faster(ratio)
        assert not measurably_faster(gate.layer_speedup(narrow, wide, (64, 16, 16)))


def test_a_copy_is_not_faster_than_its_original(digits: Classification, tmp_path: Path) -> None:
    original = Path("models/digits/student.onnx")
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(original.read_bytes())
    for seed in (0, 1):
        ratio = Gate(recipe(seed=seed), Here(), digits, tmp_path, Journal(tmp_path / "run")).speedup(original, copy)
        assert not measurably_faster(ratio), describe(ratio)
        assert 0.8 < ratio.value < 1.25


def test_a_latency_is_measured_anew_when_more_seconds_are_asked_for(digits: Classification, tmp_path: Path) -> None:
    class Counting(Here):
        asked = 0

        def bench(self, *parts: Any, **options: Any) -> Any:
            self.asked += 1
            return super().bench(*parts, **options)

    place, journal, original = Counting(), Journal(tmp_path / "run"), Path("models/digits/student.onnx")

    def measured(seconds: float) -> float:
        return Gate(recipe(bench={"seconds": seconds}), place, digits, tmp_path, journal).latency_ms(original)

    assert measured(0.05) == measured(0.05)
    assert place.asked == 1
    measured(0.06)
    assert place.asked == 2


def test_a_latency_is_of_inputs_of_a_shape(digits: Classification, tmp_path: Path) -> None:
    asked: list[Any] = []

    class Told(Here):
        def bench(self, *parts: Any, **options: Any) -> Any:
            asked.append(options["inputs"]["image"].shape)
            return super().bench(*parts, **options)

    place, journal, table = Told(), Journal(tmp_path / "run"), recipe(bench={"seconds": 0.05}).bench
    for items in (1, 2, 2):
        inputs = {"image": np.zeros((items, 1, 8, 8), np.float32)}
        FileGate(table, place, 0, journal, inputs).latency_ms(Path("models/digits/student.onnx"))
    assert asked == [(1, 1, 8, 8), (2, 1, 8, 8)]


def test_only_a_whole_interval_above_the_margin_counts() -> None:
    assert measurably_faster(Estimate(1.2, NEEDED_SPEEDUP + 0.001, 1.4))
    assert not measurably_faster(Estimate(1.2, NEEDED_SPEEDUP, 1.4))
    assert not measurably_faster(Estimate(1.0024, 1.0018, 1.0030))  # once counted between two equal files


def test_the_words_say_what_was_demanded() -> None:
    text = describe(Estimate(1.0024, 1.0018, 1.0030))
    assert text == "1.00× as fast (95 % interval 1.002 to 1.003; only what lies above 1.02 as a whole counts)"


def test_another_machine_may_have_more_threads_than_this_one() -> None:
    table = recipe(bench={"threads": 1000, "remote": "server"}).bench
    assert settings_of(table).threads == 1000
    assert verifying_settings(table) == SessionSettings()
    with pytest.raises(UsageError, match="1000 threads were asked for"):
        settings_of(recipe(bench={"threads": 1000}).bench)


def test_what_was_measured_counts_for_the_same_machine_and_runtime() -> None:
    host = read_host()
    assert key_of(replace(host, load_average=9.0, os="Linux 7")) == key_of(host)
    changes: list[dict[str, Any]] = [
        {"onnxruntime": "2"},
        {"int8_features": ()},
        {"cpu": "another"},
        {"usable_cpus": 99},
        {"cpu_limit": 0.5},  # of a container that was started again
    ]
    for change in changes:
        assert key_of(replace(host, **change)) != key_of(host)


@pytest.mark.parametrize(("int8_is", "form"), [(2.0, "int8"), (0.5, "float32")])
def test_stages_are_compared_in_the_form_that_ships(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8_is: float, form: str
) -> None:
    files = [tmp_path / "before.onnx", tmp_path / "after.onnx"]
    for seed, path in enumerate(files):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 10)).eval()
        names: dict[str, Any] = {"input_name": digits.input_name, "output_name": digits.output_name}
        export(network, digits.example_input(3), path, ExportTable(), **names)
    compared: list[tuple[str, str]] = []

    def speedup(before: Path, after: Path, *_: object) -> Estimate:
        kinds = ["float32" if path in files else "int8" for path in (before, after)]
        compared.append((kinds[0], kinds[1]))
        ratio = int8_is if kinds == ["float32", "int8"] else 3.0
        return Estimate(ratio, ratio, ratio)

    gate = Gate(recipe(quantize={}), Here(), digits, tmp_path, Journal(tmp_path / "run"))
    monkeypatch.setattr(gate, "speedup", speedup)
    assert gate.deployed_speedup(*files).value == 3.0
    assert compared[-1] == (form, form)
