"""`onnxdistill compress` as a real process on real data: what ships, and every mistake a user can make."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onnxdistill import compress, load_student
from onnxdistill.cli import main
from onnxdistill.data import load_images
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.session import SessionSettings, most_threads, open_session
from onnxdistill.networks import build_network
from onnxdistill.recipe import load_recipe
from onnxdistill.report import LimitCheck, Report, load_report
from onnxdistill.stages.teacher import teacher
from onnxdistill.tasks import TASKS

Refuse = Callable[..., None]

EARLIER = json.dumps({"schema_version": 1, "onnxdistill_version": "0", "rows": [], "recipe": {}})

QUICK = """
name = "quick"
[data]
source = "digits"
validation = 0.15
calibration = 64
[teacher]
network = "digits-resnet"
[teacher.train]
epochs = 4
batch_size = 64
learning_rate = 0.1
[prune]
ratio = 0.5
multiple_of = 16
[distill]
epochs = 4
batch_size = 64
learning_rate = 0.05
[quantize]
[bench]
seconds = 0.2
[limits]
max_drop = 20.0
min_speedup = 1.1
"""


def run(
    *arguments: object, preexec_fn: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxdistill", *map(str, arguments)]
    variables = {**os.environ, "COLUMNS": "120", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False, preexec_fn=preexec_fn)


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


def assert_same_student(one: Path, other: Path) -> None:
    """The same weights; and the same file, if what was measured let both ship in the same precision."""
    states = [load_student(folder / "student.pt").state_dict() for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    precisions = {load_report(folder / "report.json").student.precision for folder in (one, other)}
    if len(precisions) == 1:
        assert (one / "student.onnx").read_bytes() == (other / "student.onnx").read_bytes()


def test_the_resolved_recipe_gives_the_same_student(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder, _ = finished
    again = run("compress", folder / "recipe.toml", "--out", tmp_path / "again", "--quiet")
    assert again.returncode == 0, again.stderr
    assert again.stdout == ""
    assert (tmp_path / "again" / "teacher.onnx").read_bytes() == (folder / "teacher.onnx").read_bytes()
    assert_same_student(tmp_path / "again", folder)


def test_two_processes_make_a_student_together(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(QUICK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["onnxdistill", "compress", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]
    command += ["--log-file", str(tmp_path / "log.jsonl"), "--time-budget", "2h"]
    command += ["--tensorboard", str(tmp_path / "curves")]
    command += ["--set", "distill.views=2", "--set", "distill.crop_pad=1"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    report = load_report(tmp_path / "run" / "report.json")
    assert report.student.score is not None
    assert report.student.score.value > 90
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    epochs = [(line["stage"], line["epoch"]) for line in lines if line["event"] == "epoch"]
    assert epochs == [(stage, epoch) for stage in ("teacher", "distill") for epoch in (1, 2, 3, 4)]
    assert process.stdout.count("teacher  ") == 2  # one line of progress and one of the table, by one process
    assert lines[-1]["event"] == "done"
    curves = EventAccumulator(str(tmp_path / "curves"))
    curves.Reload()
    scores = [line["score"] for line in lines if line["event"] == "epoch" and line["stage"] == "distill"]
    assert [point.value for point in curves.Scalars("distill/score")] == pytest.approx(scores)


def test_the_page_needs_nothing_else(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    page = (finished[0] / "report.html").read_text()
    assert page.count("<svg") >= 3
    for outside in ("<script", "<link", "src=", "@import"):
        assert outside not in page


def test_a_speedup_that_is_asked_for_is_planned_and_promised(tmp_path: Path) -> None:
    """And a run that is killed in its trainings goes on with the same plan, whatever the times are then."""
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(QUICK)
    asked = ("compress", recipe, "--out", out, "--speedup", 1.5, "--max-drop", 60, "--set", "quantize=")
    asked += ("--set", "plan.steps=2", "--set", "plan.epochs=1", "--set", "plan.pairs=false", "--time-budget", "30m")
    for awaited in ("plan-1.pt", "distill.pt"):
        killed_at(tmp_path / ".run.resume" / awaited, *asked)
    process = run(*asked)
    assert process.returncode == 0, process.stderr
    # It fits that network, and the time that the training before has left, only.
    assert "distill: it went on at epoch" in " ".join(process.stdout.split())
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


def test_a_latency_that_cannot_be_had_is_missed_with_the_numbers(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(QUICK)
    few = ("--set", "teacher.train.epochs=1", "--set", "distill=", "--set", "quantize=", "--set", "plan.steps=1")
    process = run("compress", recipe, "--out", tmp_path / "run", "--latency-ms", 1e-6, *few)
    assert process.returncode == 1
    assert "max_latency_ms = 1e-06: " in process.stderr
    assert "max_latency_ms = 1e-06: the plan reached 0." in process.stderr
    assert "nothing is left to cut" in process.stderr
    assert "Traceback" not in process.stderr
    # Whoever asks for less need not train the teacher again.
    assert "What was trained is kept for another try" in process.stdout
    assert [path.name for path in (tmp_path / ".run.resume").glob("*.pt")] == ["teacher.pt"]
    both = run("compress", recipe, "--speedup", 2, "--latency-ms", 1)
    assert both.returncode == 2
    assert "--speedup and --latency-ms exclude each other" in both.stderr


def test_missed_limits_exit_with_the_numbers_and_keep_the_earlier_run(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(QUICK.replace("[prune]\nratio = 0.5\nmultiple_of = 16\n", "").replace("epochs = 4", "epochs = 1"))
    earlier = tmp_path / "run"
    earlier.mkdir()
    (earlier / "report.json").write_text(EARLIER)
    log = tmp_path / "log.jsonl"
    process = run("compress", recipe, "--out", earlier, "--set", "limits.min_speedup=1000", "--log-file", log)
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["event"] == "failed"
    assert "min_speedup = 1000: measured" in last["error"]
    assert process.returncode == 1
    assert "min_speedup = 1000: measured" in process.stderr
    assert "Traceback" not in process.stderr
    assert (earlier / "report.json").read_text() == EARLIER
    missed = json.loads((tmp_path / "run.missed" / "report.json").read_text())
    assert missed["shipped"] is False


def test_weights_that_a_run_reads_do_not_go_with_the_folder_that_it_replaces(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder, _ = finished
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    weights = tmp_path / "run.missed" / "teacher.pt"
    shutil.copytree(folder, weights.parent)
    before = weights.read_bytes()
    table = f"[[distill.teachers]]\nnetwork = 'digits-resnet'\nweights = '{weights}'\n"
    recipe.write_text(QUICK.replace("epochs = 4", "epochs = 1") + table)
    refused = run("compress", recipe, "--out", out)
    assert refused.returncode == 2
    assert f"distill.teachers[0].weights = {weights} lies in a folder that this run replaces" in refused.stderr
    assert weights.read_bytes() == before
    recipe.write_text(QUICK)
    # What it trains on from would be gone, and the same command would do something else.
    again = run("compress", recipe, "--out", out, "--set", f"teacher.weights={weights}")
    assert f"teacher.weights = {weights} lies in a folder that this run replaces" in again.stderr
    fewer = [f"--set={key}" for key in ("teacher.train=", "prune=", "distill=", "quantize=", "limits.min_speedup=1000")]
    missed = run("compress", recipe, "--out", out, "--set", f"teacher.weights={weights}", *fewer)
    assert "min_speedup = 1000: measured" in missed.stderr
    assert torch.equal(
        torch.load(weights, weights_only=True)["conv1.weight"],
        torch.load(folder / "teacher.pt", weights_only=True)["conv1.weight"],
    )


def test_a_console_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(QUICK[: QUICK.index("[prune]")].replace("epochs = 4", "epochs = 1") + "[bench]\nseconds = 0.2\n")
    code = (
        "import sys; from onnxdistill import shell; from onnxdistill.cli import main; known = shell.render_report\n"
        "def render(report):\n"
        "    sys.stdout.flush(); import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); return known(report)\n"
        f"shell.render_report = render; sys.argv = ['onnxdistill', 'compress', {str(recipe)!r}, '--out', "
        f"{str(tmp_path / 'run')!r}]; main()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("Error: The output cannot be written: No space left on device.")
    assert (tmp_path / "run" / "student.onnx").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_leaves_nothing_but_what_it_can_go_on_from(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "recipe.toml").write_text(QUICK.replace("epochs = 4", "epochs = 400"))
    command = [sys.executable, "-m", "onnxdistill", "compress", tmp_path / "recipe.toml", "--out", tmp_path / "run"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs, such as these tests may be, with the interrupt ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("data")  # now it trains the teacher
        assert len(list(tmp_path.glob(".run.partial-*"))) == 1
        process.send_signal(number)
        _, message = process.communicate(timeout=60)
    assert process.returncode in (128 + number, 130)
    assert "Traceback" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) in (["recipe.toml"], [".run.resume", "recipe.toml"])


def killed_at(awaited: Path, *arguments: object) -> None:
    """Runs a command until there is a file."""
    command = [sys.executable, "-m", "onnxdistill", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not awaited.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "it ended by itself"
        process.kill()


def test_a_run_that_is_killed_goes_on_to_the_same_student(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(QUICK)
    for awaited in ("teacher.pt", "distill.pt"):
        killed_at(tmp_path / ".run.resume" / awaited, "compress", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    last = run("compress", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    assert last.returncode == 0, last.stderr
    assert "distill: it went on at epoch" in " ".join(last.stdout.split())
    folder, _ = finished
    assert_same_student(tmp_path / "run", folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.toml", "run"]


def test_latency_only_without_weights_or_data(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "blind"\n[data]\nsource = "folder"\nroot = "nowhere"\nimage_size = 32\ncalibration = 8\n'
        '[teacher]\nnetwork = "cifar-resnet20"\n[distill]\nepochs = 3\n[quantize]\n[bench]\nseconds = 0.1\n'
        "[limits]\nmax_drop = 1.0\n"
    )
    process = run("compress", recipe, "--out", tmp_path / "run")
    assert process.returncode == 0, process.stderr
    assert "not measured" in process.stdout
    report = load_report(tmp_path / "run" / "report.json")
    assert all(row.score is None for row in report.rows)
    assert report.student.speedup is not None
    assert report.shipped
    assert report.limits == [LimitCheck("max_drop", 1.0, None, None, None, None, "points")]
    assert report.notes[0] == "Accuracy was not measured: the teacher has neither weights nor training."
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (process.stdout, page):
        assert "max_drop = 1: not measured" in text


NETWORK = """
from torch import nn

class Silent(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).relu()

def small():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )

def silent():
    return Silent()
"""


class TestStagesThatChangeNothing:
    """On a tiny network without data: whatever did not become part of the student leaves a note and nothing else."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Callable[..., Report]:
        (tmp_path / "net.py").write_text(NETWORK)

        def compressed(tables: str, function: str = "small") -> Report:
            recipe = tmp_path / "recipe.toml"
            recipe.write_text(
                'name = "tiny"\n[data]\nsource = "folder"\nroot = "nowhere"\nimage_size = 8\ncalibration = 8\n'
                f'[teacher]\nnetwork = "net.py:{function}"\n[bench]\nseconds = 0.1\n{tables}'
            )
            return compress(recipe, out=tmp_path / "run")

        return compressed

    @pytest.fixture
    def gate(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Says that nothing is faster; returns what it was asked about."""
        asked: list[Path] = []

        def slower(before: Path, after: Path, *_: object, **__: object) -> Estimate:
            asked.extend((before, after))
            return Estimate(1.0, 0.99, 1.01)

        monkeypatch.setattr("onnxdistill.device.places.compare", slower)
        return asked

    @pytest.mark.parametrize(
        ("table", "reason"),
        [
            ("ratio = 0.5\nmultiple_of = 1000", "prune.multiple_of = 1000"),
            ("ratio = 0.5\nminimum = 500", "prune.minimum = 500"),
            ("ratio = 0.01", "prune.ratio"),
            ('ratio = 0.5\nskip = ["*"]', "prune.skip"),
        ],
    )
    def test_prune_without_a_cut(self, made: Callable[..., Report], gate: list[Path], table: str, reason: str) -> None:
        report = made(f"[prune]\n{table}\n")
        assert [row.stage for row in report.rows] == ["teacher"]
        assert [note for note in report.notes if note.startswith("prune removed nothing: ") and reason in note]
        assert report.groups == []
        assert gate == []

    def test_prune_that_is_not_faster(self, made: Callable[..., Report], gate: list[Path]) -> None:
        report = made("[prune]\nratio = 0.5\n")
        assert gate
        assert [(row.stage, row.applied) for row in report.rows] == [("teacher", True), ("prune", False)]
        assert report.groups == []
        refusals = [note for note in report.notes if note.startswith("prune")]
        assert len(refusals) == 1
        assert "was measured and not used: 1.00× as fast" in refusals[0]
        assert "above 1.02" in refusals[0]

    def test_prune_that_is_used_tells_its_cuts(
        self, made: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("onnxdistill.device.places.compare", lambda *_, **__: Estimate(2.0, 1.9, 2.1))
        assert [group.channels_after for group in made("[prune]\nratio = 0.5\n").groups] == [8, 8]

    @pytest.mark.parametrize(
        ("table", "reason"),
        [
            ("macs_ratio = 0.5\nmultiple_of = 64", "no rank that is a multiple of 64 saves multiply-adds in any layer"),
            ('macs_ratio = 0.5\nskip = ["*"]', "there is no layer to factorize, or all are skipped"),
            ("macs_ratio = 0.5\nmultiple_of = 4", "low-rank pair"),
        ],
    )
    def test_factorize_without_a_pair(
        self, made: Callable[..., Report], gate: list[Path], table: str, reason: str
    ) -> None:
        report = made(f"[factorize]\n{table}\n")
        notes = [note for note in report.notes if note.startswith("factorize was left out: ")]
        assert len(notes) == 1
        assert reason in notes[0]
        assert ("measured" in notes[0]) == bool(gate)

    def test_a_network_without_multiply_adds(self, made: Callable[..., Report], gate: list[Path]) -> None:
        report = made("[prune]\nratio = 0.5\n[factorize]\nmacs_ratio = 0.5\n", function="silent")
        assert report.teacher.macs == 0
        assert any(note.startswith("prune removed nothing: ") for note in report.notes)
        assert "factorize was left out: there is no layer to factorize." in report.notes
        assert gate == []


def test_a_limit_of_file_sizes_is_explained(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK.replace("(3, 16,", "(3, 512,").replace("d(16, 16", "d(512, 16"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "tiny"\n[data]\nsource = "folder"\nroot = "nowhere"\nimage_size = 8\ncalibration = 8\n'
        '[teacher]\nnetwork = "net.py:small"\n[bench]\nseconds = 0.1\n'
    )
    process = run(
        "compress",
        recipe,
        "--out",
        tmp_path / "p" / "run",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert "File too large. Raise the limit of file sizes" in " ".join(process.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["net.py", "recipe.toml"]


def test_downloadable_weights_without_a_network_say_so(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "r"\n[data]\nsource = "folder"\nroot = "{root}"\nimage_size = 8\ncalibration = 2\nvalidation = 0.2\n'
        '[teacher]\nnetwork = "torchvision:resnet18"\nweights = "DEFAULT"\n'
    )
    # A proxy that nobody listens at stands for the missing network; the cache is empty.
    process = run(
        "compress",
        recipe,
        "--out",
        tmp_path / "run",
        https_proxy="http://127.0.0.1:9",
        TORCH_HOME=str(tmp_path / "cache"),
    )
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert "cannot be downloaded" in process.stderr
    assert 'teacher.weights = "none"' in " ".join(process.stderr.split())


def image_folder(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                    root / split / name / f"{index}.png"
                )
    return root


class TestRefusals:
    """Each is one paragraph with exit code 2, and the earlier run stays as it was."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        (tmp_path / "recipe.toml").write_text(QUICK)
        image_folder(tmp_path / "images")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "report.json").write_text(EARLIER)
        return tmp_path

    @pytest.fixture
    def refuse(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
        """Runs the command in this process; an exception that `main` does not explain fails the test."""

        def refused(*settings: str, recipe: str = "recipe.toml", out: str = "run", parts: tuple[str, ...]) -> None:
            options = [part for setting in settings for part in ("--set", setting)]
            command = ["onnxdistill", "compress", str(place / recipe), "--out", str(place / out), *options]
            monkeypatch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as ended:
                main()
            message = capsys.readouterr().err
            assert ended.value.code == 2, message
            assert "\n\n" not in message.strip()
            for part in parts:
                assert part in " ".join(message.split())
            assert (place / "run" / "report.json").read_text() == EARLIER
            assert sorted(path.name for path in place.iterdir()) == ["images", "recipe.toml", "run"]

        return refused

    def test_missing_recipe(self, refuse: Refuse) -> None:
        refuse(recipe="none.toml", parts=("none.toml", "does not exist"))

    def test_wrong_key(self, refuse: Refuse) -> None:
        refuse("prune.ration=0.5", parts=("prune.ration: unknown key", "'ratio'"))

    def test_wrong_type(self, refuse: Refuse) -> None:
        refuse("distill.epochs=many", parts=("distill.epochs = 'many'", "integer"))

    def test_unknown_provider(self, refuse: Refuse) -> None:
        refuse("bench.provider=cudaa", parts=("cudaa", "Did you mean 'cuda'"))

    def test_unusable_provider(self, refuse: Refuse) -> None:
        refuse("bench.provider=cuda", parts=("no execution provider 'cuda'", "it has: "))

    def test_unknown_network(self, refuse: Refuse) -> None:
        refuse("teacher.network=resnet18", parts=("'resnet18'", "'torchvision:resnet18'"))

    def test_missing_network_function(self, refuse: Refuse) -> None:
        refuse("teacher.network=nowhere.py:make", parts=("nowhere.py", "does not exist"))
        refuse("teacher.network=no_such_module:make", parts=("'no_such_module'", "cannot be imported"))
        refuse("teacher.network=math:pie", parts=("math has no function 'pie'",))

    def test_missing_data(self, place: Path, refuse: Refuse) -> None:
        root = place / "nowhere"
        refuse("data.source=folder", f"data.root={root}", parts=(str(root), "is not a folder"))

    def test_empty_data(self, place: Path, refuse: Refuse) -> None:
        root = place / "images" / "empty"
        root.mkdir()
        refuse("data.source=folder", f"data.root={root}", parts=(str(root), "neither train/ nor test/"))

    def test_missing_class(self, place: Path, refuse: Refuse) -> None:
        for path in (place / "images" / "test" / "dog").iterdir():
            path.unlink()
        settings = ("data.source=folder", f"data.root={place / 'images'}", "data.image_size=8")
        refuse(*settings, parts=(str(place / "images" / "test"), "no image of the class 'dog'"))

    def test_missing_weights(self, refuse: Refuse) -> None:
        refuse("teacher.weights=none.pt", parts=("none.pt does not exist",))

    def test_truncated_weights(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "cut.pt"
        torch.save(build_network("digits-resnet", 10, 0).state_dict(), path)
        for length in (5000, 10, 0):
            path.write_bytes(path.read_bytes()[:length])
            refuse(f"teacher.weights={path}", parts=(str(path), "cannot be read as a PyTorch state dict"))

    def test_text_for_weights(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "notes.pt"
        path.write_text("not weights\n")
        refuse(f"teacher.weights={path}", parts=(str(path), "cannot be read as a PyTorch state dict"))

    def test_weights_that_would_run_code(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "whole.pt"
        torch.save(build_network("digits-resnet", 10, 0), path)
        refuse(f"teacher.weights={path}", parts=(str(path), "torch.save(network.state_dict(), path)"))

    def test_something_else_than_a_state_dict(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "list.pt"
        torch.save([1, 2], path)
        refuse(f"teacher.weights={path}", parts=(str(path), "holds a list, not a state dict"))

    def test_weights_of_another_architecture(self, place: Path, refuse: Refuse) -> None:
        path = place / "images" / "other.pt"
        torch.save(build_network("cifar-resnet20", 10, 0).state_dict(), path)
        refuse(f"teacher.weights={path}", parts=(str(path), "is for another architecture"))

    def test_unwritable_place(self, refuse: Refuse) -> None:
        # A file where a folder should be refuses root, too.
        refuse(out="recipe.toml/run", parts=("recipe.toml/run", "cannot be written"))

    @pytest.mark.skipif(most_threads() >= 1000, reason="needs a machine for which 1000 threads are too many")
    def test_more_threads_than_make_sense(self, refuse: Refuse) -> None:
        refuse("bench.threads=1000", parts=("1000 threads were asked for", "Ask for at most"))

    def test_a_batch_beyond_the_memory(self, place: Path, refuse: Refuse) -> None:
        data = (
            "data.source=folder",
            f"data.root={place / 'images'}",
            "data.calibration=2",
            "data.image_size=1000",
            "data.resize=1000",
        )
        refuse(*data, "bench.batch=65536", parts=("bench.batch = 65536 takes 786.4 GB", "smaller batch"))

    def test_somebody_elses_folder(self, refuse: Refuse) -> None:
        refuse(out="images", parts=("images", "not the folder of an earlier run"))
