"""What decides between int8 files: scores of real files on validation, and what the recipe leaves to lose."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxdistill.device.places import Here
from onnxdistill.device.session import SessionSettings
from onnxdistill.gate import Gate
from onnxdistill.journal import Journal
from onnxdistill.judge import Int8Judge
from onnxdistill.networks import build_network
from onnxdistill.quantization.ladder import Loss
from onnxdistill.recipe import ExportTable, Recipe
from onnxdistill.stages.export import export
from onnxdistill.tasks.classification import Classification

GOOD = Path("models/digits/student.onnx")


@pytest.fixture(scope="module")
def bad(digits: Classification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that has learned nothing."""
    path = tmp_path_factory.mktemp("bad") / "untrained.onnx"
    names = {"input_name": digits.input_name, "output_name": digits.output_name}
    export(build_network("digits-resnet", 10, 0), digits.example_input(3), path, ExportTable(), **names)
    return path


def judge_of(digits: Classification, folder: Path, teacher: Path, student: Path, **tables: object) -> Int8Judge:
    network = {"network": "digits-resnet"}
    recipe = Recipe.model_validate(
        {"name": "judge", "data": {"source": "digits"}, "teacher": network, "quantize": {}, **tables}
    )
    gate = Gate(recipe, Here(), digits, folder, Journal(folder / "run"))
    return Int8Judge(recipe, digits, SessionSettings(), gate, teacher, student)


def test_losses_are_those_of_validation(digits: Classification, tmp_path: Path, bad: Path) -> None:
    judge = judge_of(digits, tmp_path, GOOD, GOOD)
    assert judge.measurable
    same = judge.loss(GOOD)
    assert same.points == 0.0
    assert -3.0 < same.low < 0.0  # of so few samples, even if all of them agree
    assert judge.refusal(Loss(0.0, 0.0)) == ""
    loss = judge.loss(bad)
    assert 50 < loss.low < loss.points < 95
    assert f"int8 is {loss.points:.2f} % below float32; quantize.max_drop is 0.5" in judge.refusal(loss)


def test_chance_is_no_reason_unless_the_student_has_a_limit(digits: Classification, tmp_path: Path) -> None:
    judge = judge_of(digits, tmp_path, GOOD, GOOD)
    assert judge.refusal(Loss(2.0, -0.1)) == ""
    strict = judge_of(digits, tmp_path, GOOD, GOOD, limits={"max_drop": 0.2})
    assert strict.limit == pytest.approx(0.2)
    assert strict.refusal(Loss(0.2, 0.1)) == ""
    assert "0.20 are left of limits.max_drop" in strict.refusal(Loss(0.3, -0.1))


def test_a_float_student_that_misses_its_limit_leaves_int8_its_own(
    digits: Classification, tmp_path: Path, bad: Path
) -> None:
    judge = judge_of(digits, tmp_path, GOOD, bad, limits={"max_drop": 1.0})
    assert judge.limit == 0.5
    assert judge.refusal(Loss(3.0, -0.1)) == ""
    assert judge.refusal(Loss(3.0, 0.1)) != ""


@pytest.mark.parametrize(
    ("limits", "keeps"),
    [
        ({}, True),
        ({"min_speedup": 0.5}, True),
        ({"min_speedup": 50.0}, False),
        ({"max_latency_ms": 1e3}, True),
        ({"max_latency_ms": 1e-6}, False),
    ],
)
@pytest.mark.usefixtures("brief_looks")
def test_speeds_are_those_beside_the_teacher(
    digits: Classification, tmp_path: Path, limits: dict[str, float], keeps: bool
) -> None:
    recipe: dict[str, object] = {"limits": limits, "bench": {"seconds": 0.5}}
    assert judge_of(digits, tmp_path, GOOD, GOOD, **recipe).keeps_speed(GOOD) is keeps


@pytest.mark.usefixtures("brief_looks")
def test_a_loss_that_may_be_chance_is_no_reason_to_be_too_slow(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: dict[str, object] = {"bench": {"seconds": 0.5}}
    slow, fast = (
        judge_of(digits, tmp_path, GOOD, GOOD, limits={"max_drop": 0.2, "min_speedup": ratio}, **tables)
        for ratio in (50.0, 0.5)
    )
    assert slow.refusal(Loss(0.3, -0.1)) != ""
    chance, certain = Loss(0.3, -0.1), Loss(0.9, 0.3)
    assert slow.may_be_chance(chance)
    assert not slow.may_be_chance(certain)
    # The float file is fast enough, or the int8 file is as slow.
    assert not fast.is_the_only_hope(GOOD, chance)
    assert not slow.is_the_only_hope(GOOD, chance)
    monkeypatch.setattr(slow, "keeps_speed", lambda path: path != GOOD)
    assert slow.is_the_only_hope(tmp_path / "int8.onnx", chance)
    assert not slow.is_the_only_hope(tmp_path / "int8.onnx", certain)
    # Nothing checks what ships if there is no limit.
    assert not judge_of(digits, tmp_path, GOOD, GOOD).may_be_chance(Loss(3.0, 0.4))
