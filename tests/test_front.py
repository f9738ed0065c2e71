"""Several students of one recipe as real processes on real data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from onnxdistill import compress_front
from onnxdistill.errors import LimitsMissedError
from onnxdistill.report import Report, load_report

QUICK = """
name = "quick"
[data]
source = "digits"
validation = 0.15
calibration = 64
[teacher]
network = "digits-resnet"
[teacher.train]
epochs = 3
batch_size = 64
learning_rate = 0.1
[distill]
epochs = 2
batch_size = 64
learning_rate = 0.05
[bench]
seconds = 0.2
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxdistill", "compress", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    monkeypatch.setenv("ONNXDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "front-cache"))
    path = tmp_path / "recipe.toml"
    path.write_text(QUICK)
    return path


def test_students_of_one_teacher_at_several_speeds(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "front"
    # 1.2 and 1.44 times as fast in float32, so that little has to be trained and measured.
    asked = (recipe, "--speedup", 1.44, "--pareto", 2, "--max-drop", 60, "--out", out, "--set", "plan.steps=1")
    process = run(*asked)
    assert process.returncode == 0, process.stderr
    front = json.loads((out / "front.json").read_text())
    assert [point["asked_speedup"] for point in front["points"]] == [1.2, 1.44]
    reports = [load_report(out / point["folder"] / "report.json") for point in front["points"]]
    assert [point["shipped"] for point in front["points"]] == [report.shipped for report in reports]
    assert any(report.shipped for report in reports)
    # Trained once, in the first run; the second begins with its weights, and scores the same with them.
    first, second = reports
    assert second.recipe["teacher"]["weights"].endswith("teacher.pt")
    assert [log.stage for log in first.trainings] == ["teacher", "distill"]
    assert [log.stage for log in second.trainings] == ["distill"]
    assert first.teacher.score == second.teacher.score
    assert "<svg" in (out / "front.html").read_text()
    assert "1.2x" in process.stdout
    # What is there is not made again, but what was asked otherwise is.
    times = [(out / point["folder"] / "report.json").stat().st_mtime_ns for point in front["points"]]
    assert run(*asked, "--quiet").returncode == 0
    assert [(out / point["folder"] / "report.json").stat().st_mtime_ns for point in front["points"]] == times


def test_what_is_out_of_reach_at_every_speed(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unreachable(*_: object, overrides: tuple[str, ...], **__: object) -> Report:
        asked.extend(overrides[-2:])
        raise LimitsMissedError("3 x is the most.")

    monkeypatch.setattr("onnxdistill.front.compress", unreachable)
    with pytest.raises(LimitsMissedError, match="No speed-up of quick can be reached: 3 x is the most"):
        compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])
    assert asked == [f"{key}={value}" for value in (2.0, 4.0, 8.0) for key in ("plan.speedup", "limits.min_speedup")]
    assert not (tmp_path / "front").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pareto", 3), "--pareto needs to know how far it goes"),
        (("--pareto", 3, "--latency-ms", 1), "--pareto needs to know how far it goes"),
        (("--pareto", 1, "--speedup", 2), "1 is not in the range"),
        (("--pareto", 2, "--onnx", "a.onnx", "--data", "a.npz", "--speedup", 2), "--pareto is for recipes"),
    ],
)
def test_what_makes_no_front(recipe: Path, arguments: tuple[object, ...], message: str) -> None:
    process = run(*(() if "--onnx" in arguments else (recipe,)), *arguments)
    assert process.returncode == 2
    assert message in process.stderr


def test_a_run_is_no_place_for_a_front(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    process = run(recipe, "--pareto", 2, "--speedup", 2, "--out", tmp_path)
    assert process.returncode == 2
    assert "is the folder of a run" in process.stderr
