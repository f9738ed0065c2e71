"""`onnxdistill compress` in all sorts of surroundings: several processes, signals, full disks, no data, no network."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxdistill.report import LimitCheck, load_report
from tests.compress.commands import NETWORK, QUICK, image_folder, run, run_here


def test_two_processes_make_a_student_together(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(QUICK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["onnxdistill", "compress", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]
    command += ["--log-file", str(tmp_path / "log.jsonl"), "--time-budget", "2h"]
    command += ["--tensorboard", str(tmp_path / "curves")]
    # Nothing is trained with int8 here, whose files the process that leads makes alone.
    command += ["--set", "distill.views=2", "--set", "distill.crop_pad=1", "--set", "quantize="]
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
    # Importing it takes seconds, which everybody who collects this file would wait for.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(tmp_path / "curves"))
    curves.Reload()
    scores = [line["score"] for line in lines if line["event"] == "epoch" and line["stage"] == "distill"]
    assert [point.value for point in curves.Scalars("distill/score")] == pytest.approx(scores)


def test_of_two_processes_the_one_that_leads_says_what_is_wrong(tmp_path: Path) -> None:
    """By the key that names the network; and the other one neither waits nor speaks."""
    (tmp_path / "nets.py").write_text("def make():\n    raise RuntimeError('no such file')\n")
    (tmp_path / "recipe.toml").write_text(QUICK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["onnxdistill", "compress", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]
    command += ["--set", f'distill.teachers=[{{network="{tmp_path / "nets.py"}:make", weights="own"}}]']
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode != 0
    errors = [line for line in process.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, process.stderr
    assert "distill.teachers" in errors[0]
    assert "no such file" in process.stderr


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
    """And one that was started with `nohup` is not ended by its terminal."""

    def start() -> None:
        # A shell starts its background jobs, such as these tests may be, with the interrupt ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    (tmp_path / "recipe.toml").write_text(QUICK.replace("epochs = 4", "epochs = 400"))
    command = [sys.executable, "-m", "onnxdistill", "compress", tmp_path / "recipe.toml", "--out", tmp_path / "run"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=start,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("data")  # now it trains the teacher
        assert len(list(tmp_path.glob(".run.partial-*"))) == 1
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.send_signal(number)
        _, message = process.communicate(timeout=60)
    assert process.returncode in (128 + number, 130)
    assert "Traceback" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) in (["recipe.toml"], [".run.resume", "recipe.toml"])


@pytest.mark.usefixtures("brief_looks")
def test_latency_only_without_weights_or_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "blind"\n[data]\nsource = "folder"\nroot = "nowhere"\nimage_size = 32\ncalibration = 8\n'
        '[teacher]\nnetwork = "cifar-resnet20"\n[distill]\nepochs = 3\n[quantize]\n[bench]\nseconds = 0.1\n'
        "[limits]\nmax_drop = 1.0\n"
    )
    process = run_here(monkeypatch, capsys, "compress", recipe, "--out", tmp_path / "run")
    assert process.returncode == 0, process.stderr
    assert "not measured" in process.stdout
    report = load_report(tmp_path / "run" / "report.json")
    assert all(row.score is None for row in report.rows)
    assert report.student.speedup is not None
    assert report.shipped
    assert report.limits == [LimitCheck("max_drop", 1.0, None, None, None, None, "points")]
    assert report.notes[0].startswith("Accuracy was not measured: the teacher has neither weights nor training.")
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (process.stdout, page):
        assert "max_drop = 1: not measured" in text


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


def test_downloadable_weights_without_a_network_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(tmp_path / "images")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "r"\n[data]\nsource = "folder"\nroot = "{root}"\nimage_size = 8\ncalibration = 2\nvalidation = 0.2\n'
        '[teacher]\nnetwork = "torchvision:resnet18"\nweights = "DEFAULT"\n'
    )
    # A proxy that nobody listens at stands for the missing network; the cache is empty.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request._opener", None)  # it knows the proxies of when it was first used
    process = run_here(monkeypatch, capsys, "compress", recipe, "--out", tmp_path / "run")
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert "cannot be downloaded" in process.stderr
    assert 'teacher.weights = "none"' in " ".join(process.stderr.split())
