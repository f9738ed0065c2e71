"""Several students of one recipe on real data."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import onnxdistill
from onnxdistill import compress_front, front
from onnxdistill.device.host import read_host
from onnxdistill.errors import LimitsMissedError, TrainingError, UsageError
from onnxdistill.keeping import SharedTeacher, has_settings, is_of
from onnxdistill.recipe import Recipe, load_recipe
from onnxdistill.report import Artifact, Report, StageRow, load_report
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
    assert [log.stage for log in report.trainings] == ["teacher"]
    assert "<svg" in (out / "front.html").read_text()
    assert (out / "teacher.pt").read_bytes() == (out / "1.2x" / "teacher.pt").read_bytes()
    # It is not made again, although a run would begin with the trained weights now.
    made_ns = (out / "1.2x" / "report.json").stat().st_mtime_ns
    console = Console(file=io.StringIO(), width=60)
    assert compress_front(recipe, 1, out=out, overrides=asked, console=console) == first
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "1.2x is kept: it was made with the same settings." in text
    assert "quick: 1 of 1 students" in text
    assert (out / "1.2x" / "report.json").stat().st_mtime_ns == made_ns


def test_what_is_kept_is_of_the_same_teacher_settings_and_machine(report: Report, recipe: Path, tmp_path: Path) -> None:
    host = read_host().to_json()
    recipe_of = partial(load_recipe, recipe)
    made = replace(
        report,
        onnxdistill_version=onnxdistill.__version__,
        host=host,
        recipe=recipe_of(["plan.speedup=2", "seed=0"]).model_dump(mode="json", exclude_none=True),
        artifacts=[Artifact("teacher.onnx", 1, "ab")],
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "teacher.pt").write_bytes(b"weights")
    first = SharedTeacher(tmp_path, recipe_of(), {}, 10)
    assert (first.overrides, first.made(made, tmp_path / "run")) == ([], False)
    first.remember(made, tmp_path / "run")
    later = SharedTeacher(tmp_path, recipe_of(["plan.speedup=4"]), {}, 10)
    assert later.made(made, tmp_path / "run")
    assert later.overrides == [f"teacher.weights={tmp_path / 'teacher.pt'}", "teacher.train=", "teacher.new_head="]
    assert (tmp_path / "teacher.pt").read_bytes() == b"weights"
    assert not later.made(replace(made, artifacts=[Artifact("teacher.onnx", 1, "cd")]), tmp_path / "run")
    assert not later.made(made, tmp_path / "run 2")
    # A teacher that was trained otherwise, or on other data, is another one.
    for change in ("teacher.train.epochs=4", "seed=1", "data.validation=0.2"):
        other = SharedTeacher(tmp_path, recipe_of([change]), {}, 10)
        assert (other.overrides, other.made(made, tmp_path / "run")) == ([], False)
    assert not SharedTeacher(tmp_path, recipe_of(), {"test": {"sha256": "of other images"}}, 10).made(
        made, tmp_path / "run"
    )
    shared = recipe_of(["plan.speedup=2", *later.overrides])
    assert has_settings(made, shared)
    assert not has_settings(made, recipe_of(["plan.speedup=2", "quantize.max_drop=0.25"]))
    assert is_of(made, read_host())
    assert not is_of(replace(made, onnxdistill_version="0"), read_host())
    for change in ({"cpu": "another one"}, {"cpu_limit": 0.5}, {"gpus": ("another one",)}, {"os": "another one"}):
        assert not is_of(made, replace(read_host(), **change))
    assert not is_of(replace(made, host={}), read_host())


def test_weights_that_were_replaced_are_another_teacher(recipe: Path, tmp_path: Path, report: Report) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"one")
    loaded = load_recipe(recipe, [f"teacher.weights={weights}", "teacher.train="])
    made = replace(report, artifacts=[Artifact("teacher.onnx", 1, "ab")])
    SharedTeacher(tmp_path, loaded, {}, 10).remember(made, tmp_path / "run")
    assert SharedTeacher(tmp_path, loaded, {}, 10).made(made, tmp_path / "run")
    assert SharedTeacher(tmp_path, loaded, {}, 10).overrides == []  # each run reads them itself
    weights.write_bytes(b"two")
    assert not SharedTeacher(tmp_path, loaded, {}, 10).made(made, tmp_path / "run")


def test_what_students_learn_from_beside_counts_as_well(
    recipe: Path, tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, module = tmp_path / "w.pt", tmp_path / "my_networks.py"
    module.write_text("def make(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    weights.write_bytes(b"one")
    recipe.write_text(
        f"{QUICK}\n[distill]\nepochs = 1\n[[distill.teachers]]\nnetwork = 'my_networks:make'\nweights = '{weights}'"
    )
    loaded = load_recipe(recipe, ["teacher.train="])
    made = replace(report, artifacts=[Artifact("teacher.onnx", 1, "ab")])
    SharedTeacher(tmp_path, loaded, {}, 10).remember(made, tmp_path / "run")
    assert SharedTeacher(tmp_path, loaded, {}, 10).made(made, tmp_path / "run")
    broken = load_recipe(recipe, ["teacher.train=", "teacher.network=no_such_module:make"])
    assert SharedTeacher(tmp_path, broken, {}, 10).overrides == []  # to be refused by the run
    for path in (weights, module):
        before = path.read_bytes()
        path.write_bytes(b"# two")
        other = SharedTeacher(tmp_path, loaded, {}, 10)
        assert not other.made(made, tmp_path / "run")
        other.remember(made, tmp_path / "run 2")
        assert other.made(made, tmp_path / "run 2")
        path.write_bytes(before)
        assert SharedTeacher(tmp_path, loaded, {}, 10).made(made, tmp_path / "run")


def test_a_front_goes_on_without_the_weights_of_its_teacher(recipe: Path, tmp_path: Path, report: Report) -> None:
    """A student that began with them has none of its own; then the next one trains them anew."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "teacher.pt").write_bytes(b"weights")
    made = replace(report, artifacts=[Artifact("teacher.onnx", 1, "ab")])
    loaded = load_recipe(recipe)
    SharedTeacher(tmp_path, loaded, {}, 10).remember(made, tmp_path / "run")
    (tmp_path / "teacher.pt").unlink()
    later = SharedTeacher(tmp_path, loaded, {}, 10)
    later.remember(made, tmp_path / "run without")
    assert later.overrides == []
    later.remember(made, tmp_path / "run")
    assert later.overrides != []


def test_weights_are_never_those_of_another_origin(
    recipe: Path, tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is killed, and the next call trains again and writes what is missing."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "teacher.pt").write_bytes(b"new")
    (tmp_path / "teacher.pt").write_bytes(b"old")
    made = replace(report, artifacts=[Artifact("teacher.onnx", 1, "ab")])
    loaded = load_recipe(recipe)
    with monkeypatch.context() as context:
        context.setattr("onnxdistill.keeping.shutil.copyfile", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            SharedTeacher(tmp_path, loaded, {}, 10).remember(made, tmp_path / "run")
    later = SharedTeacher(tmp_path, loaded, {}, 10)
    assert later.overrides == []
    later.remember(made, tmp_path / "run")
    assert (tmp_path / "teacher.pt").read_bytes() == b"new"


def test_what_is_out_of_reach_ends_the_front(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unreachable(*_: object, overrides: tuple[str, ...], **__: object) -> Report:
        asked.extend(overrides[-3:])
        raise LimitsMissedError("3 x is the most.")

    monkeypatch.setattr("onnxdistill.front.compress", unreachable)
    with pytest.raises(LimitsMissedError, match=r"No speed-up of quick can be reached. 3 x is the most"):
        compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])
    # No second training of a teacher whose students cannot be faster either.
    assert asked == ["plan.speedup=2.0", "limits.min_speedup=2.0", "limits.max_latency_ms="]
    assert not (tmp_path / "front").exists()


def test_a_student_that_diverges_does_not_end_the_front(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    def diverges_at_twice(*_: object, out: Path, **__: object) -> Report:
        if out.name == "2x":
            raise TrainingError("The loss is not a number.")
        out.mkdir(parents=True)
        (out / "teacher.pt").write_bytes(b"")
        (out / "report.json").write_text(report.to_json())
        return report

    monkeypatch.setattr("onnxdistill.front.compress", diverges_at_twice)
    found = compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])
    assert [(point.folder, point.note) for point in found.points] == [
        ("", "The loss is not a number."),
        ("4x", ""),
        ("8x", ""),
    ]
    assert "2 of 3 students" in (tmp_path / "front" / "front.html").read_text()


def test_a_front_whose_teacher_cannot_be_made_ends_with_the_reason(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each student would train it anew, to the same end; and what is asked for is no reason."""
    trained = list[int]()

    def diverges(_: object, __: object, *___: object) -> None:
        trained.append(1)
        raise TrainingError("The training diverged.", "Lower learning_rate.")

    monkeypatch.setattr("onnxdistill.pipeline.teacher", diverges)
    with pytest.raises(TrainingError, match="diverged") as caught:
        compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])
    assert caught.value.fix == "Lower learning_rate."
    assert trained == [1]


def test_a_front_all_of_whose_students_diverge_does_not_say_that_they_are_out_of_reach(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: object, out: Path, **__: object) -> Report:
        raise TrainingError(f"{out.name} diverged.", "Lower learning_rate.")

    monkeypatch.setattr("onnxdistill.front.compress", diverges)
    with pytest.raises(TrainingError, match="2x diverged") as caught:
        compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])
    assert caught.value.fix == "Lower learning_rate."


def test_a_student_that_diverges_before_one_that_is_out_of_reach_is_what_is_told(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def neither(*_: object, out: Path, **__: object) -> Report:
        if out.name == "2x":
            raise TrainingError("It diverged.", "Lower learning_rate.")
        raise LimitsMissedError("The plan reached 3 x.", "Ask for less.")

    monkeypatch.setattr("onnxdistill.front.compress", neither)
    with pytest.raises(TrainingError, match="It diverged"):
        compress_front(recipe, 3, out=tmp_path / "front", overrides=["plan.speedup=8"])


def test_a_front_that_is_ended_on_the_way_says_what_is_missing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    def ended_at_four_times(*_: object, out: Path, **__: object) -> Report:
        if out.name == "4x":
            raise KeyboardInterrupt
        out.mkdir(parents=True)
        (out / "teacher.pt").write_bytes(b"")
        (out / "report.json").write_text(report.to_json())
        return report

    monkeypatch.setattr("onnxdistill.front.compress", ended_at_four_times)
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[dict[str, Any]] = []

    def refused(_recipe: Path, **settings: Any) -> None:
        asked.append(settings)
        raise LimitsMissedError("1 x is the most.")

    monkeypatch.setattr(front, "compress", refused)
    with pytest.raises(LimitsMissedError):
        front.compress_front(
            recipe, 2, overrides=["plan.speedup=2"], out="front", log_file="log.jsonl", tensorboard="curves"
        )
    (settings,) = asked
    assert "teacher.network=digits-resnet" in settings["overrides"]
    assert settings["log_file"] == tmp_path / "log.jsonl"
    assert settings["out"].parent == tmp_path / "front"
    assert settings["tensorboard"].parent == tmp_path / "curves"


def test_weights_that_a_function_loads_are_part_of_what_a_teacher_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    net = nn.Linear(2, 2)\n"
        f"    net.load_state_dict(torch.load({str(tmp_path / 'w.pt')!r}))\n    return net\n"
    )
    loaded = Recipe.model_validate(
        {
            "name": "x",
            "data": {"source": "digits"},
            "teacher": {"network": f"{tmp_path}/nets.py:make", "weights": "own"},
        }
    )
    origins = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
        origins.append(SharedTeacher(tmp_path, loaded, {}, 2)._origin)
    assert origins[0] == origins[1] != origins[2]


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
        *((name, "is not one of a front") for name in ("front.html", "front.json", "teacher.json", "teacher.pt")),
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


def test_files_of_others_are_found_before_hours_of_training(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "front" / "4x").mkdir(parents=True)
    (tmp_path / "front" / "4x" / "mine.txt").touch()
    process = run_here(
        monkeypatch, capsys, "compress", recipe, "--pareto", 2, "--speedup", 4, "--out", tmp_path / "front"
    )
    assert process.returncode == 2
    assert "it holds mine.txt" in process.stderr
    assert [path.name for path in (tmp_path / "front").iterdir()] == ["4x"]


def test_torchrun_makes_no_front(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun is for one"):
        compress_front(recipe, 2, overrides=["plan.speedup=4"])
