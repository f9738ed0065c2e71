"""What a whole run of `onnxdistill compress` ships, and what gives the same again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from onnxdistill import load_student
from onnxdistill.data import load_images
from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.recipe import load_recipe
from onnxdistill.report import load_report
from onnxdistill.stages.teacher import teacher
from onnxdistill.tasks import TASKS
from tests.compress.commands import QUICK, killed_at, run, run_here


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A whole run of a small recipe."""
    folder = tmp_path_factory.mktemp("compress")
    (folder / "recipe.toml").write_text(QUICK)
    return folder / "run", run("compress", folder / "recipe.toml", "--out", folder / "run")


def test_a_run_ships_everything(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, process = finished
    assert process.returncode == 0, process.stderr
    models = ["student.onnx", "student.pt", "teacher.onnx", "teacher.pt"]
    names = ["recipe.toml", "report.html", "report.json", "samples.npz", *models]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_the_report_says_what_was_measured(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, process = finished
    report = load_report(folder / "report.json")
    assert [row.stage for row in report.rows] == ["teacher", "prune", "distill", "quantize"]
    # On a processor without VNNI int8 may be hardly faster, and then it must not ship.
    refused = any(note.startswith("quantize was measured and not used: int8 is ") for note in report.notes)
    assert report.student.precision == ("float32" if refused else "int8")
    assert report.student.macs < 0.4 * report.teacher.macs
    assert report.student.speedup is not None
    assert report.student.speedup.low > 1.1
    assert report.shipped
    for row in report.rows:
        assert row.score is not None
        assert row.latency is not None
        assert row.stage in process.stdout
        assert f"{row.score.value:.2f} %" in process.stdout
    assert str(folder.parent) not in (folder / "report.json").read_text()
    for artifact in report.artifacts:
        assert artifact.size_bytes == (folder / artifact.file).stat().st_size


def test_the_shipped_file_gives_the_reported_accuracy(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = finished
    splits = load_images(load_recipe(folder / "recipe.toml").data, seed=0)
    session = open_session(folder / "student.onnx", SessionSettings())
    pixels = splits.test.fetch(np.arange(len(splits.test)))
    inputs = (pixels.numpy().astype(np.float32) / 255 - 0.305) / 0.376
    answers = session.run({"image": inputs})["logits"].argmax(1)
    accuracy = 100 * (answers == splits.test.labels.numpy()).mean()
    score = load_report(folder / "report.json").student.score
    assert score is not None
    assert score.value == pytest.approx(accuracy, abs=1e-4)


def test_the_weights_of_a_trained_teacher_are_those_of_its_file(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = finished
    recipe = load_recipe(folder / "recipe.toml", [f"teacher.weights={folder / 'teacher.pt'}", "teacher.train="])
    task = TASKS[recipe.task](recipe)
    inputs = task.example_input(4)
    loaded = teacher(recipe, task).network(inputs).detach().numpy()
    shipped = open_session(folder / "teacher.onnx", SessionSettings()).run({"image": inputs.numpy()})["logits"]
    assert loaded == pytest.approx(shipped, abs=1e-4)


def test_the_page_needs_nothing_else(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    page = (finished[0] / "report.html").read_text()
    assert page.count("<svg") >= 3
    for outside in ("<script", "<link", "src=", "@import"):
        assert outside not in page


def assert_same_student(one: Path, other: Path) -> None:
    """The same weights; and the same file, if what was measured let both ship in the same precision."""
    states = [load_student(folder / "student.pt").state_dict() for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    precisions = {load_report(folder / "report.json").student.precision for folder in (one, other)}
    if len(precisions) == 1:
        assert (one / "student.onnx").read_bytes() == (other / "student.onnx").read_bytes()


def test_a_run_that_is_killed_goes_on_to_the_same_student(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """And the recipe that a run has resolved gives the same student."""
    folder, _ = finished
    (tmp_path / "recipe.toml").write_bytes((folder / "recipe.toml").read_bytes())
    for awaited in ("teacher.pt", "distill.pt"):
        killed_at(tmp_path / ".run.resume" / awaited, "compress", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    last = run("compress", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    assert last.returncode == 0, last.stderr
    assert "distill: it went on at epoch" in " ".join(last.stdout.split())
    assert (tmp_path / "run" / "teacher.onnx").read_bytes() == (folder / "teacher.onnx").read_bytes()
    assert_same_student(tmp_path / "run", folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.toml", "run"]


def test_weights_that_a_run_reads_do_not_go_with_the_folder_that_it_replaces(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = finished
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    weights = tmp_path / "run.missed" / "teacher.pt"
    shutil.copytree(folder, weights.parent)
    before = weights.read_bytes()
    table = f"[[distill.teachers]]\nnetwork = 'digits-resnet'\nweights = '{weights}'\n"
    recipe.write_text(QUICK.replace("epochs = 4", "epochs = 1") + table)
    refused = run_here(monkeypatch, capsys, "compress", recipe, "--out", out)
    assert refused.returncode == 2
    assert f"distill.teachers[0].weights = {weights} lies in a folder that this run replaces" in refused.stderr
    assert weights.read_bytes() == before
    recipe.write_text(QUICK)
    # What it trains on from would be gone, and the same command would do something else.
    again = run_here(monkeypatch, capsys, "compress", recipe, "--out", out, "--set", f"teacher.weights={weights}")
    assert f"teacher.weights = {weights} lies in a folder that this run replaces" in again.stderr
    fewer = [f"--set={key}" for key in ("teacher.train=", "prune=", "distill=", "quantize=", "limits.min_speedup=1000")]
    missed = run_here(
        monkeypatch, capsys, "compress", recipe, "--out", out, "--set", f"teacher.weights={weights}", *fewer
    )
    assert "min_speedup = 1000: measured" in missed.stderr
    assert torch.equal(
        torch.load(weights, weights_only=True)["conv1.weight"],
        torch.load(folder / "teacher.pt", weights_only=True)["conv1.weight"],
    )
