"""`onnxdistill profile`, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxdistill.device.costs.deviceprofile import read_device_profile
from tests.compress.commands import run_here
from tests.device.costs.models import network

RECIPE = """
name = "x"
[data]
source = "digits"
[teacher]
network = "nothing"
weights = "none.pt"
[teacher.train]
epochs = 1
"""


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxdistill", "profile", *map(str, arguments)]
    variables = {**os.environ, "COLUMNS": "100", "ONNXDISTILL_CACHE": str(folder / "cache")}
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False)


def test_a_table_and_a_file(tmp_path: Path) -> None:
    model, out = network(tmp_path / "m.onnx", 16), tmp_path / "device.json"
    process = run(tmp_path, model, "--precision", "int8", "--step", 16, "--out", out)
    assert process.returncode == 0, process.stderr
    for text in ("int8 3x3 stride 2x2 on 16x16", "int8 5x5 depthwise on 8x8", "int8 product of 1 rows", "3→16"):
        assert text in process.stdout
    assert process.stderr == ""
    profile = read_device_profile(out)
    assert len(profile.surfaces) == 5
    # From the cache now: the same times.
    again = run(tmp_path, model, "--precision", "int8", "--step", 16, "--out", out)
    assert again.stdout == process.stdout
    assert read_device_profile(out).surfaces == profile.surfaces


def test_the_layers_of_a_recipe(tmp_path: Path) -> None:
    recipe, out = tmp_path / "r.toml", tmp_path / "device.json"
    recipe.write_text(RECIPE)
    sets = ("--set", "teacher.network=digits-resnet", "--set", "bench.batch=2")
    process = run(tmp_path, recipe, *sets, "--precision", "float32", "--step", 64, "--out", out)
    assert process.returncode == 0, process.stderr
    assert {kind.places[0] for kind in read_device_profile(out).surfaces} == {2}
    # Ten classes come out of the last layer, as of the data; weights that are not there are no matter.
    assert "64→10" in process.stdout
    assert "float32 3x3 stride 2x2 on" in process.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "device.json", "r.toml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx"], "none.onnx"),
        (["m.onnx", "--precision", "int4"], "'int4' is not one of"),
        (["m.onnx", "--step", "0"], "multiples of at least 1"),
        (["m.onnx", "--out", "m.onnx"], "the result would replace it"),
        (["m.onnx", "--out", "none/x.json"], "there is no folder"),
        (["m.onnx", "--threads", "0"], "at least 1 thread"),
        (["m.onnx", "--provider", "nothing"], "nothing"),
        (["m.onnx", "--shape", "z=1x3"], "z"),
        (["m.onnx", "--set", "seed=1"], "there is none"),
        (["r.toml"], "'nothing' is not a network"),
        (["r.toml", "--set", "teachers=1"], "teachers"),
        (["none.toml"], "none.toml does not exist"),
        (["r.toml", "m.onnx"], "Profile it alone"),
        (["r.toml", "--set", "teacher.network=digits-resnet", "--shape", "image=1x1x9x9"], "r.toml: --shape"),
    ],
)
def test_mistakes_get_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    network(tmp_path / "m.onnx", 16)
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXDISTILL_CACHE", str(tmp_path / "cache"))
    process = run_here(monkeypatch, capfd, "profile", *arguments)
    assert process.returncode in (1, 2)
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "r.toml"]
