"""What the tests of `onnxdistill compress` share: a quick recipe, and the command as a process or in this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest
from PIL import Image

from onnxdistill.cli import main

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


def run(
    *arguments: object, preexec_fn: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxdistill", *map(str, arguments)]
    variables = {**os.environ, "COLUMNS": "120", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False, preexec_fn=preexec_fn)


def run_here(
    monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str], *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process, which has everything imported already.

    What `main` does not explain is raised, and fails the test.

    Args:
        monkeypatch: For what the command sees of its surroundings.
        captured: `capsys`; or `capfd` where what libraries write past Python counts, too.
        arguments: Of the command.
    """
    command = ["onnxdistill", *map(str, arguments)]
    # `main` takes these signals over, which are to end the tests afterwards as before.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    captured.readouterr()  # what was written before is not the command's
    try:
        with monkeypatch.context() as context:
            context.setattr(sys, "argv", command)
            context.setenv("COLUMNS", "120")
            with pytest.raises(SystemExit) as ended:
                main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    code, shown = ended.value.code, captured.readouterr()
    assert isinstance(code, int), code  # as `main` ends, whatever comes of it
    return subprocess.CompletedProcess(command, code, shown.out, shown.err)


def killed_at(awaited: Path, *arguments: object) -> None:
    """Runs a command until there is a file."""
    command = [sys.executable, "-m", "onnxdistill", *map(str, arguments)]
    with TemporaryFile() as errors, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
        deadline = time.monotonic() + 900
        while not awaited.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        came, ended = awaited.exists(), process.poll() is not None
        process.kill()
        errors.seek(0)
        text = errors.read().decode()
    assert not ended, f"it ended by itself: {text}"
    assert came, f"it was not there in time: {text}"


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
