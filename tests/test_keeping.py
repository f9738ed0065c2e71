"""What an earlier call has left, told by its reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import onnxdistill
from onnxdistill.device.host import read_host
from onnxdistill.keeping import is_student, trained_teacher
from onnxdistill.recipe import Recipe
from onnxdistill.report import Report, StageRow

TABLES: dict[str, Any] = {
    "name": "quick",
    "data": {"source": "digits"},
    "teacher": {"network": "digits-resnet", "train": {"epochs": 3}},
    "plan": {"speedup": 2},
    "quantize": {},
}
SOURCES = {"teacher": {"network": "digits-resnet", "network_sha256": None, "weights_sha256": "ab"}}
BESIDE = {"distill.teachers[0]": {"network": "cifar-resnet20", "network_sha256": None, "weights_sha256": "cd"}}
DATA = {"test": {"images": 450, "sha256": "ef"}}


def recipe_with(changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other tables, and without those that are None."""
    tables = {**TABLES, **changes}
    return Recipe.model_validate({name: table for name, table in tables.items() if table is not None})


@pytest.fixture
def report() -> Report:
    rows = [StageRow(stage, "float32", 1, 1, 1, None, None, None, 1.0, True, "") for stage in ("teacher", "plan")]
    tables = recipe_with({}).model_dump(mode="json", exclude_none=True)
    return Report(
        1, onnxdistill.__version__, "quick", "classification", "top-1", "%", "", 1.0, True, "float32",
        rows, [], [], [], [], [], dict(DATA), tables, read_host().to_json(), {}, sources=dict(SOURCES),
    )  # fmt: skip


def test_a_student_is_kept_if_it_would_be_made_so_again(report: Report) -> None:
    host = read_host()

    def kept(made: Report = report, **changes: Any) -> bool:
        return is_student(made, recipe_with(changes), SOURCES, DATA, host)

    assert kept()
    # Where the weights of the teacher lie is not what they are.
    assert kept(teacher={"network": "digits-resnet", "weights": "/elsewhere/teacher.pt"})
    assert not kept(quantize={"max_drop": 0.25})
    assert not kept(seed=1)
    assert not kept(replace(report, onnxdistill_version="0"))
    assert not kept(replace(report, host={}))
    for change in ({"cpu": "another one"}, {"cpu_limit": 0.5}, {"gpus": ("another one",)}, {"os": "another one"}):
        assert not is_student(report, recipe_with({}), SOURCES, DATA, replace(host, **change))
    others = {"teacher": {**SOURCES["teacher"], "weights_sha256": "of others"}}
    for sources in (others, {**SOURCES, **BESIDE}, {}):
        assert not is_student(report, recipe_with({}), sources, DATA, host)
    assert not is_student(report, recipe_with({}), SOURCES, {"test": {"images": 450, "sha256": "of others"}}, host)


def test_a_teacher_is_kept_if_it_would_be_trained_so_again(report: Report, tmp_path: Path) -> None:
    (tmp_path / "teacher.pt").touch()

    def kept(made: Report = report, data: Mapping[str, Any] = DATA, **changes: Any) -> Report | None:
        (tmp_path / "report.json").write_text(made.to_json())
        return trained_teacher(tmp_path, recipe_with(changes), {**SOURCES, **BESIDE}, data)

    assert kept() == report
    # What the students are, and learn from beside it, is not what it was made of.
    assert kept(plan={"speedup": 4}, quantize=None, distill={"epochs": 1}) == report
    assert kept(teacher={"network": "digits-resnet", "train": {"epochs": 4}}) is None
    assert kept(seed=1) is None
    assert kept(data={"source": "digits", "validation": 0.2}) is None
    assert kept(report, {"test": {"images": 450, "sha256": "of others"}}) is None
    assert kept(replace(report, sources={})) is None
    assert kept(replace(report, onnxdistill_version="0")) is None
    assert kept() is not None
    (tmp_path / "teacher.pt").unlink()
    assert kept() is None
    (tmp_path / "teacher.pt").touch()
    (tmp_path / "report.json").write_text("{")
    assert trained_teacher(tmp_path, recipe_with({}), SOURCES, DATA) is None
