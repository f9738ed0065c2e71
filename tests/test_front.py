"""Several students of one recipe on real data."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import onnxdistill
from onnxdistill import compress_front, front
from onnxdistill.device.host import read_host
from onnxdistill.errors import LimitsMissedError, OutputError, ParityError, TrainingError, UsageError
from onnxdistill.networks import build_network
from onnxdistill.recipe import Recipe, load_recipe
from onnxdistill.report import Report, StageRow, load_report
from onnxdistill.sources import network_sources
from onnxdistill.tasks import TASKS
from tests.compress.commands import run_here

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
[quantize]
[bench]
seconds = 0.2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(QUICK)
    return path


@pytest.fixture
def report() -> Report:
    rows = [StageRow(stage, "float32", 1, 1, 1, None, None, None, 1.0, True, "") for stage in ("teacher", "plan")]
    tables = {"bench": {"batch": 1, "threads": 1}}
    return Report(
        1, "0", "quick", "classification", "top-1", "%", "", 1.0, True, "float32",
        rows, [], [], [], [], [], {}, tables, {}, {},
    )  # fmt: skip


@pytest.mark.usefixtures("brief_looks")
def test_a_student_and_its_teacher_are_kept(recipe: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "front", ["plan.speedup=1.2", "limits.max_drop=60"]
    # Of a teacher of one epoch, int8 may lose more, and no better form of it is to be looked for.
    asked += ["teacher.train.epochs=1", "quantize.max_drop=60"]
    # As fast as int8 is without a cut, so that little has to be measured.
    first = compress_front(recipe, 1, out=out, overrides=asked)
    assert json.loads((out / "front.json").read_text())["points"][0]["asked_speedup"] == 1.2
    report = load_report(out / "1.2x" / "report.json")
    assert report.shipped
    assert first.points[0].student == report.student
    assert not report.trainings
    trained = load_report(out / "teacher" / "report.json")
    assert [log.stage for log in trained.trainings] == ["teacher"]
    (sha256,) = (one.sha256 for one in trained.artifacts if one.file == "teacher.onnx")
    assert sha256 in (one.sha256 for one in report.artifacts if one.file == "teacher.onnx")
    assert report.recipe["teacher"]["weights"] == str(out / "teacher" / "teacher.pt")
    page = (out / "front.html").read_text()
    assert "<svg" in page
    assert '<a href="teacher/report.html">teacher</a>' in page
    made_ns = [(out / name / "report.json").stat().st_mtime_ns for name in ("teacher", "1.2x")]
    console = Console(file=io.StringIO(), width=60)
    assert compress_front(recipe, 1, out=out, overrides=asked, console=console) == first
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "1.2x is kept: it was made with the same settings." in text
    assert "quick: 1 of 1 students" in text
    assert [(out / name / "report.json").stat().st_mtime_ns for name in ("teacher", "1.2x")] == made_ns


class Compress:
    """In place of `compress`: makes what it would make, without any work, and ends students as it is told to."""

    def __init__(self, report: Report, ends: Mapping[str, BaseException] | None = None, weights: bytes = b"") -> None:
        self._report, self._ends, self._weights = report, ends or {}, weights
        self.begun: list[str] = []
        self.settings: list[dict[str, Any]] = []

    def __call__(self, source: Path, *, out: Path, **settings: Any) -> Report:
        self.begun.append(out.name)
        self.settings.append(settings)
        if out.name in self._ends:
            raise self._ends[out.name]
        return made_by(self._report, load_recipe(source, settings["overrides"]), out, self._weights)


def made_by(report: Report, recipe: Recipe, folder: Path, weights: bytes = b"") -> Report:
    """Puts down a run folder of a recipe, with the numbers of a report."""
    task = TASKS[recipe.task](recipe)
    made = replace(
        report,
        name=recipe.name,
        onnxdistill_version=onnxdistill.__version__,
        host=read_host().to_json(),
        data=task.describe_data(),
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        sources=dict(network_sources(recipe, 10)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.teacher.train is not None:
        (folder / "teacher.pt").write_bytes(weights)
    (folder / "report.json").write_text(made.to_json())
    return made


@pytest.fixture
def compresses(monkeypatch: pytest.MonkeyPatch, report: Report) -> Callable[..., Compress]:
    """Puts one in the place of `compress`."""

    def placed(**settings: Any) -> Compress:
        found = Compress(report, **settings)
        monkeypatch.setattr("onnxdistill.front.compress", found)
        return found

    return placed


def test_what_is_there_is_not_made_again(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress], report: Report
) -> None:
    made, out = compresses(), tmp_path / "front"

    def begun(speedup: float, count: int, *overrides: str) -> list[str]:
        made.begun.clear()
        compress_front(recipe, count, out=out, overrides=[f"plan.speedup={speedup}", *overrides])
        return list(made.begun)

    assert begun(4, 2) == ["teacher", "2x", "4x"]
    assert begun(4, 2) == []
    assert begun(8, 3) == ["8x"]
    assert begun(8, 3, "quantize.max_drop=0.25") == ["2x", "4x", "8x"]
    assert begun(8, 3, "data.validation=0.2") == ["teacher", "2x", "4x", "8x"]
    assert begun(8, 3, "data.validation=0.2", "teacher.train.epochs=4") == ["teacher"]  # to the same bytes
    # Wherever a call was ended, what is complete stays.
    (out / "front.json").unlink()
    (out / "front.html").unlink()
    (out / "4x" / "report.json").unlink()
    assert begun(8, 3, "data.validation=0.2", "teacher.train.epochs=4") == ["4x"]
    (out / "teacher" / "teacher.pt").unlink()
    assert begun(8, 3, "data.validation=0.2", "teacher.train.epochs=4") == ["teacher"]


def test_students_of_another_teacher_are_made_again(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress]
) -> None:
    """The same training may end in other weights, as on a GPU."""
    compresses(weights=b"some")
    compress_front(recipe, 2, out=tmp_path / "front", overrides=["plan.speedup=4"])
    shutil.rmtree(tmp_path / "front" / "teacher")
    second = compresses(weights=b"others")
    compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])
    assert second.begun == ["teacher", "2x", "4x", "8x"]


def test_what_is_out_of_reach_ends_the_front_and_its_teacher_stays(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress]
) -> None:
    made = compresses(ends={name: LimitsMissedError("1.4 x is the most.") for name in ("2x", "1.5x")})
    with pytest.raises(LimitsMissedError, match=r"No speed-up of quick can be reached. 1.4 x is the most"):
        compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8", "limits.max_drop=1"])
    assert made.begun == ["teacher", "2x"]
    points = json.loads((tmp_path / "front" / "front.json").read_text())["points"]
    assert [one["note"] for one in points] == ["1.4 x is the most."] + ["Not tried: a slower one is out of reach."] * 2
    alone, asked = (load_recipe(recipe, settings["overrides"]) for settings in made.settings)
    assert (alone.plan, alone.quantize, alone.limits.max_drop, alone.limits.min_speedup) == (None, None, None, None)
    assert alone.teacher.train is not None
    assert alone.name == "quick-teacher"
    assert asked.plan is not None
    assert (asked.plan.speedup, asked.limits.min_speedup, asked.limits.max_drop) == (2.0, 2.0, 1.0)
    assert asked.teacher.train is None
    assert asked.teacher.weights == str(tmp_path / "front" / "teacher" / "teacher.pt")
    # Asked for less, the teacher that took hours is there.
    with pytest.raises(LimitsMissedError):
        compress_front(recipe, 1, out=tmp_path / "front", overrides=["plan.speedup=1.5"])
    assert made.begun == ["teacher", "2x", "1.5x"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[distill.features]\nlayers = ['no_such_layer']", "no_such_layer"),
        ("[[distill.teachers]]\nnetwork = 'cifar-resnet20'\nweights = 'w.pt'", "distill.teachers.0.network"),
    ],
)
def test_what_no_student_can_learn_from_is_told_before_the_teacher_is_trained(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress], table: str, message: str
) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "w.pt")
    recipe.write_text(f"{QUICK}[distill]\nepochs = 1\n{table}")
    made = compresses()
    with pytest.raises(UsageError, match=message):
        compress_front(recipe, 2, out=tmp_path / "front", overrides=["plan.speedup=4"])
    assert not made.begun
    assert not (tmp_path / "front").exists()


def test_a_teacher_whose_weights_cannot_be_read_again_is_told_before_it_is_trained(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress]
) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def get_extra_state(self):\n"
        "        return {'scale': 1.0}\n\n    def set_extra_state(self, state):\n        self.scale = state['scale']\n"
        "\n\ndef make():\n    return Net(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    made = compresses()
    with pytest.raises(UsageError, match="cannot be read again"):
        compress_front(
            recipe,
            2,
            out=tmp_path / "front",
            overrides=["plan.speedup=4", f"teacher.network={tmp_path / 'nets.py'}:make"],
        )
    assert not made.begun


def test_a_student_that_diverges_does_not_end_the_front(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress]
) -> None:
    compresses(ends={"2x": TrainingError("The loss is not a number.")})
    found = compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])
    assert [(point.folder, point.note) for point in found.points] == [
        ("", "The loss is not a number."),
        ("4x", ""),
        ("8x", ""),
    ]
    assert "2 of 3 students" in (tmp_path / "front" / "front.html").read_text()


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_front_whose_teacher_cannot_be_made_ends_with_the_reason(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trained: bool
) -> None:
    """Each student would begin with it, and come to the same end; and what is asked for is no reason."""
    torch.save(build_network("digits-resnet", 10, 0).state_dict(), tmp_path / "w.pt")
    loaded = ["teacher.train=", f"teacher.weights={tmp_path / 'w.pt'}"]
    made = list[int]()

    def refused(_: object, __: object, *___: object) -> None:
        made.append(1)
        raise ParityError("The ONNX file differs.", "Report it.")

    monkeypatch.setattr("onnxdistill.pipeline.teacher", refused)
    overrides = ["plan.speedup=8", *([] if is_trained else loaded)]
    with pytest.raises(ParityError, match="differs") as caught:
        compress_front(recipe, 3, out=tmp_path / "front", overrides=overrides)
    assert caught.value.fix == "Report it."
    assert made == [1]


def test_a_front_all_of_whose_students_diverge_does_not_say_that_they_are_out_of_reach(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress]
) -> None:
    compresses(ends={name: TrainingError(f"{name} diverged.", "Lower learning_rate.") for name in ("2x", "4x", "8x")})
    with pytest.raises(TrainingError, match="2x diverged") as caught:
        compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])
    assert caught.value.fix == "Lower learning_rate."


def test_a_student_that_diverges_before_one_that_is_out_of_reach_is_what_is_told(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress]
) -> None:
    ends = {
        "2x": TrainingError("It diverged.", "Lower learning_rate."),
        "4x": LimitsMissedError("The plan reached 3 x.", "Ask for less."),
    }
    compresses(ends=ends)
    with pytest.raises(TrainingError, match="It diverged"):
        compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])


def test_a_front_that_is_ended_on_the_way_says_what_is_missing(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress]
) -> None:
    compresses(ends={"4x": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])
    points = json.loads((tmp_path / "front" / "front.json").read_text())["points"]
    assert [(one["asked_speedup"], one["note"]) for one in points] == [
        (2.0, ""), (4.0, "Not made yet."), (8.0, "Not made yet."),
    ]  # fmt: skip


def test_what_is_read_stays_in_the_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of the user's own may go to another one."""
    path = tmp_path / "recipe.toml"
    path.write_text('name = "x"\n[data]\nsource = "folder"\nroot = "there"\n[teacher]\nnetwork = "resnet18"\n')
    overrides = (
        "data.root=images",
        "teacher.network=nets.py:make",
        "teacher.weights=w",
        'distill={epochs=1, teachers=[{network="more.py:make", weights="w.pt"}]}',
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(path, overrides)
    assert loaded.data.root == f"{tmp_path}/images"
    places = front._places(loaded)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(path, overrides) != loaded
    assert load_recipe(path, (*overrides, *places)) == loaded


def test_runs_of_a_front_get_places_that_do_not_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path, compresses: Callable[..., Compress]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = compresses()
    front.compress_front(
        recipe, 2, overrides=["plan.speedup=4"], out="front", log_file="log.jsonl", tensorboard="curves"
    )
    assert made.begun == ["teacher", "2x", "4x"]
    assert {path.name for path in (tmp_path / "front").iterdir()} == {*made.begun, "front.json", "front.html"}
    for name, settings in zip(made.begun, made.settings, strict=True):
        assert "teacher.network=digits-resnet" in settings["overrides"]
        assert settings["log_file"] == tmp_path / "log.jsonl"
        assert settings["tensorboard"] == tmp_path / "curves" / name


def test_a_teacher_alone_is_without_every_stage_of_a_student() -> None:
    """A stage that is new, and not left out there, would be done to the teacher."""
    left_out = {item.rstrip("=") for item in front._WITHOUT_STUDENT}
    assert set(Recipe.model_fields) - left_out == {"name", "task", "seed", "data", "teacher", "export", "bench"}


def test_what_a_student_of_the_recipe_has_is_left_out_of_its_teacher(recipe: Path) -> None:
    """In whatever way it was asked for."""
    recipe.write_text(f"{QUICK}[distill]\nepochs = 2\n[prune]\nratio = 0.5\n[factorize]\nmacs_ratio = 0.5\n")
    asked = ("distill.minutes=40", 'quantize.targets=["arm64"]', "limits.max_drop=1", "distill.learning_rate=1")
    alone = load_recipe(recipe, (*asked, *front._WITHOUT_STUDENT))
    assert alone == load_recipe(recipe, front._WITHOUT_STUDENT)
    assert (alone.prune, alone.factorize, alone.distill, alone.quantize) == (None, None, None, None)


@pytest.mark.parametrize("place", ["2x", "4x", "teacher"])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("distill.teachers", "distill.teachers[0].weights"),
        ("teacher.train.teachers", "teacher.train.teachers[0].weights"),
    ],
)
def test_what_is_learnt_from_does_not_lie_where_a_front_writes(
    recipe: Path, tmp_path: Path, report: Report, place: str, key: str, message: str
) -> None:
    made_by(report, load_recipe(recipe), tmp_path / "front" / place, b"weights")
    weights = tmp_path / "front" / place / "teacher.pt"
    overrides = ["plan.speedup=4", "distill.epochs=1", f'{key}=[{{network="digits-resnet", weights="{weights}"}}]']
    with pytest.raises(UsageError, match=re.escape(message)):
        compress_front(recipe, 2, out=tmp_path / "front", overrides=overrides)
    assert weights.read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("option", "place", "message"),
    [
        ("log_file", "2x/log.jsonl", "lies in the run folder"),
        ("log_file", "teacher/log.jsonl", "lies in the run folder"),
        ("log_file", "front.json", "is written by the front itself"),
        ("tensorboard", "", "lies in the run folder"),
        ("tensorboard", "4x", "lies in the run folder"),
    ],
)
def test_logs_do_not_lie_where_a_front_writes(
    recipe: Path, tmp_path: Path, option: str, place: str, message: str
) -> None:
    out = tmp_path / "front"
    places: dict[str, Any] = {option: out / place}
    with pytest.raises(OutputError, match=message):
        compress_front(recipe, 2, out=out, overrides=["plan.speedup=4"], **places)
    assert not out.exists()


def test_a_run_of_somebody_is_not_replaced_by_the_teacher_of_a_front(
    recipe: Path, tmp_path: Path, report: Report, compresses: Callable[..., Compress]
) -> None:
    made = compresses()
    made_by(report, load_recipe(recipe, ["teacher.train.epochs=7"]), tmp_path / "teacher", b"weights")
    with pytest.raises(OutputError, match=r"teacher is a run that this front has not made"):
        compress_front(recipe, 2, out=tmp_path, overrides=["plan.speedup=4"])
    assert (tmp_path / "teacher" / "teacher.pt").read_bytes() == b"weights"
    assert made.begun == []
    # But it is taken if it is just what would be made; it is not ours by that.
    compress_front(recipe, 2, out=tmp_path, overrides=["plan.speedup=4", "teacher.train.epochs=7"])
    assert made.begun == ["2x", "4x"]
    with pytest.raises(OutputError, match=r"teacher is a run that this front has not made"):
        compress_front(recipe, 2, out=tmp_path, overrides=["plan.speedup=4"])


def test_the_teacher_of_a_front_stays_its_own(
    recipe: Path, tmp_path: Path, compresses: Callable[..., Compress]
) -> None:
    """Also after a call that took it as a teacher that was given."""
    made = compresses()
    compress_front(recipe, 1, out=tmp_path, overrides=["plan.speedup=4"])
    weights = tmp_path / "teacher" / "teacher.pt"
    torch.save(build_network("digits-resnet", 10, 0).state_dict(), weights)
    given = ["plan.speedup=2", "teacher.train=", f"teacher.weights={weights}"]
    compress_front(recipe, 1, out=tmp_path, overrides=given)
    compress_front(recipe, 1, out=tmp_path, overrides=["plan.speedup=4", "teacher.train.epochs=7"])
    assert made.begun == ["teacher", "4x", "2x", "teacher"]


def test_what_can_be_no_folder(recipe: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        compress_front(recipe, 2, out="a\0b", overrides=["plan.speedup=4"])


def test_ratios() -> None:
    def asked(speedup: float, count: int) -> list[float]:
        return front._ratios(speedup, count)

    assert asked(8, 3) == [2, 4, 8]
    # What was asked for is not rounded.
    assert asked(12.345, 2) == [3.51, 12.345]
    for speedup, count in ((1.01, 4), (2, 100), (2, 0)):
        with pytest.raises(UsageError):
            asked(speedup, count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pareto", 3), "A front needs to know how far it goes"),
        (("--pareto", 3, "--latency-ms", 1), "A front needs to know how far it goes"),
        (("--pareto", 200, "--speedup", 2), "are too near to each other"),
        (("--pareto", 1, "--speedup", 2), "1 is not in the range"),
        (("--pareto", 2, "--speedup", 2, "--set", "limits.max_latency_ms=1"), "has no effect on a front"),
        (("--pareto", 2, "--set", "plan.speedup=2", "--set", "limits.min_speedup=1"), "has no effect on a front"),
        (("--speedup", 2, "--set", "limits.min_speedup=1"), "has no effect beside --speedup, which sets it"),
        (("--latency-ms", 2, "--set", "limits.max_latency_ms=1"), "has no effect beside --latency-ms"),
        (("--pareto", 2, "--speedup", 2, "--set", "limits={max_latency_ms=1}"), "has no effect on a front"),
        (("--speedup", 2, "--set", "limits={max_drop=1.0, min_speedup=1}"), "has no effect beside --speedup"),
        (("--speedup", 2, "--set", "plan={speedup=3}"), "has no effect beside --speedup"),
        (("--speedup", 2, "--set", "prune={ratio=0.5}"), "has no effect beside --speedup"),
        (("--pareto", 2, "--onnx", "a.onnx", "--data", "a.npz", "--speedup", 2), "--pareto is for recipes"),
    ],
)
def test_what_makes_no_front(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    process = run_here(monkeypatch, capsys, "compress", *(() if "--onnx" in arguments else (recipe,)), *arguments)
    assert process.returncode == 2
    assert message in process.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("report.json", "is the folder of a run"),
        *((name, "is not one of a front") for name in ("front.html", "front.json")),
    ],
)
def test_what_is_no_place_for_a_front(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    message: str,
) -> None:
    (tmp_path / name).write_text("{}")
    process = run_here(monkeypatch, capsys, "compress", recipe, "--pareto", 2, "--speedup", 2, "--out", tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize("name", ["4x", "teacher"])
def test_files_of_others_are_found_before_hours_of_training(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "front" / name).mkdir(parents=True)
    (tmp_path / "front" / name / "mine.txt").touch()
    process = run_here(
        monkeypatch, capsys, "compress", recipe, "--pareto", 2, "--speedup", 4, "--out", tmp_path / "front"
    )
    assert process.returncode == 2
    assert "it holds mine.txt" in process.stderr
    assert [path.name for path in (tmp_path / "front").iterdir()] == [name]


def test_torchrun_makes_no_front(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun is for one"):
        compress_front(recipe, 2, overrides=["plan.speedup=4"])
