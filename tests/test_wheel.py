"""The built wheel on a device: only the base and ONNX Runtime, no torch and no onnx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

MODEL = Path("models/digits/student.onnx").absolute()


class Device:
    """A fresh environment with the wheel in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")

    def python(self, *arguments: object, check: bool = False) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / "python"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=check, cwd=self.folder)

    def onnxdistill(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / "onnxdistill"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder, with_pip=True)
    device = Device(folder)
    constraints = Path("constraints.txt").absolute()
    device.python("-m", "pip", "install", "--quiet", "--constraint", constraints, f"{wheel}[cpu]", check=True)
    return device


def test_neither_torch_nor_onnx_is_there(device: Device) -> None:
    for package in ("torch", "onnx", "pydantic"):
        assert device.python("-c", f"import {package}").returncode == 1
    assert device.onnxdistill("--version").stdout.startswith("onnxdistill 0.")


def test_bench_works(device: Device) -> None:
    process = device.onnxdistill("bench", MODEL, "--runs", 100, "--json", "-")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    (case,) = result["cases"]
    assert case["name"] == "student"
    assert sum(map(len, case["times_ms"])) == 100
    assert 0 < case["latency_ms"]["median"]["value"] <= case["latency_ms"]["p95"]["value"]
    table = device.onnxdistill("bench", MODEL, "--runs", 100, "--threads", 1, "--batch", 4)
    assert table.returncode == 0, table.stderr
    assert "student" in table.stdout


def test_every_option_of_bench_works(device: Device, tmp_path: Path) -> None:
    options = ["--threads", "1,2", "--batch", 2, "--opt-level", "basic", "--seconds", 0.3, "--io-binding"]
    options += ["--rate", "200/s", "--clients", 2, "--slo", "median=10s", "--profile", "--check-outputs"]
    outputs = ["--format", "junit", "--json", tmp_path / "a.json", "--html", tmp_path / "a.html"]
    process = device.onnxdistill("bench", MODEL, MODEL, *options, *outputs)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "a.json").read_text())
    assert [len(result[part]) for part in ("cases", "loads", "profiles", "agreements")] == [4, 4, 4, 1]
    assert {verdict["outcome"] for verdict in result["verdicts"]} == {"met"}
    assert process.stdout.startswith("<?xml")
    assert (tmp_path / "a.html").read_text().startswith("<!")
    gate = device.onnxdistill("bench", MODEL, "--baseline", MODEL, "--max-regression", "50%")
    assert gate.returncode == 0, gate.stderr
    search = device.onnxdistill("bench", MODEL, "--seconds", 0.3, "--rate", "max", "--slo", "median=1s")
    assert search.returncode == 0, search.stderr


def test_profile_works(device: Device, tmp_path: Path) -> None:
    # The embedded student is int8: its layers are profiled as they would be in float32, too.
    process = device.onnxdistill("profile", MODEL, "--step", 16, "--fresh", "--out", tmp_path / "device.json")
    assert process.returncode == 0, process.stderr
    assert "float32 3x3 on 8x8" in process.stdout
    assert json.loads((tmp_path / "device.json").read_text())["layers"]


def test_doctor_works(device: Device) -> None:
    process = device.onnxdistill("doctor")
    assert process.returncode == 0, process.stdout
    assert "onnxruntime" in process.stdout


def test_compress_names_the_extra(device: Device) -> None:
    process = device.onnxdistill("compress", "recipe.toml")
    assert process.returncode == 2
    # It has ONNX Runtime, and `cpu` may be the wrong one.
    assert "pip install 'onnxdistill[compress]'" in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1


def test_without_a_runtime_bench_names_the_extras(device: Device) -> None:
    device.python("-m", "pip", "uninstall", "--quiet", "--yes", "onnxruntime", check=True)
    process = device.onnxdistill("bench", MODEL)
    assert process.returncode == 2
    assert "onnxdistill[cpu]" in process.stderr
    assert "onnxdistill[gpu]" in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    assert device.onnxdistill("--version").returncode == 0
    assert device.onnxdistill("doctor").returncode == 1
