"""What `onnxdistill compress` promises: a speed and an accuracy, and what it leaves where it cannot keep them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxdistill import load_student
from onnxdistill.recipe import load_recipe
from onnxdistill.report import load_report
from tests.compress.commands import EARLIER, QUICK, killed_at, run, run_here


def test_a_speedup_that_is_asked_for_is_planned_and_promised(tmp_path: Path) -> None:
    """And a run that is killed in its trainings goes on with the same plan, whatever the times are then."""
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(QUICK)
    asked = ("compress", recipe, "--out", out, "--speedup", 1.5, "--max-drop", 60, "--set", "quantize=")
    asked += ("--set", "plan.steps=2", "--set", "plan.epochs=1", "--set", "plan.pairs=false", "--time-budget", "30m")
    asked += ("--set", "plan.multiple_of=16", "--set", "teacher.train.epochs=1")
    for state in ("plan-1.pt", "distill.pt"):
        killed_at(tmp_path / ".run.resume" / state, *asked)
    process = run(*asked)
    assert process.returncode == 0, process.stderr
    # It fits that network, and the time that the training before has left, only.
    shown = " ".join(process.stdout.split())
    assert "distill: it went on at epoch" in shown
    assert "plan, cut 1: a run that was ended later had done it" in shown
    assert not (tmp_path / ".run.resume").exists()
    report = load_report(out / "report.json")
    assert [(log.stage, len(log.epochs)) for log in report.trainings if log.stage != "teacher"] == [
        ("plan, cut 1", 1),
        ("distill", 4),
    ]
    assert [row.stage for row in report.rows] == ["teacher", "plan", "distill"]
    assert {check.name: check.limit for check in report.limits} == {"max_drop": 60, "min_speedup": 1.5}
    assert all(check.met for check in report.limits)
    assert any(note.startswith("plan, cut 1: ") for note in report.notes)
    planned = load_recipe(out / "recipe.toml").plan
    assert planned is not None
    assert planned.speedup == 1.5
    assert load_student(out / "student.pt") is not None


@pytest.mark.usefixtures("brief_looks")
@pytest.mark.parametrize(
    "asked_for", [("--latency-ms", 1e-6), ("--speedup", 1.01, "--set", "limits.max_latency_ms=1e-6")]
)
def test_a_latency_that_cannot_be_had_is_missed_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked_for: tuple[object, ...]
) -> None:
    """However it is asked for; also beside a speed-up that is soon reached."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(QUICK)
    few = ("--set", "teacher.train.epochs=1", "--set", "distill=", "--set", "quantize=", "--set", "plan.steps=1")
    # Few widths and no pairs, so that little has to be timed until nothing is left to cut.
    few += ("--set", "plan.pairs=false", "--set", "plan.multiple_of=16", "--set", "plan.minimum=32")
    asked = ("compress", recipe, "--out", tmp_path / "run", *asked_for, *few)
    process = run_here(monkeypatch, capsys, *asked)
    assert process.returncode == 1
    assert "max_latency_ms = 1e-06: " in process.stderr
    assert "max_latency_ms = 1e-06: the plan reached 0." in process.stderr
    assert "nothing is left to cut" in process.stderr
    assert "Traceback" not in process.stderr
    # Whoever asks for less need not train the teacher again.
    assert "What was trained is kept for another try" in process.stdout
    assert [path.name for path in (tmp_path / ".run.resume").glob("*.pt")] == ["teacher.pt"]
    both = run_here(monkeypatch, capsys, "compress", recipe, "--speedup", 2, "--latency-ms", 1)
    assert both.returncode == 2
    assert "--speedup and --latency-ms exclude each other" in both.stderr


@pytest.mark.usefixtures("brief_looks")
def test_missed_limits_exit_with_the_numbers_and_keep_the_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(QUICK.replace("[prune]\nratio = 0.5\nmultiple_of = 16\n", "").replace("epochs = 4", "epochs = 1"))
    earlier = tmp_path / "run"
    earlier.mkdir()
    (earlier / "report.json").write_text(EARLIER)
    log = tmp_path / "log.jsonl"
    asked = ("--set=limits.min_speedup=1000", "--log-file", log, "--quiet")
    process = run_here(monkeypatch, capfd, "compress", recipe, "--out", earlier, *asked)
    assert process.stdout == ""
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["event"] == "failed"
    assert "min_speedup = 1000: measured" in last["error"]
    assert process.returncode == 1
    assert "min_speedup = 1000: measured" in process.stderr
    assert "Traceback" not in process.stderr
    assert (earlier / "report.json").read_text() == EARLIER
    missed = json.loads((tmp_path / "run.missed" / "report.json").read_text())
    assert missed["shipped"] is False
