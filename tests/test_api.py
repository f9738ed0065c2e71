"""The two functions of the package, as a user imports them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import onnxdistill
from onnxdistill import bench, compress
from onnxdistill.errors import RecipeError


def test_bench_times_the_embedded_student() -> None:
    result = bench([Path("models/digits/student.onnx")], runs=50)
    assert result.models[0].name == "student"
    assert 0 < result.models[0].latency_ms.median < 50


def test_compress_raises_what_the_command_prints(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml does not exist"):
        compress(tmp_path / "none.toml")


def test_importing_costs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, onnxdistill, onnxdistill.cli; "
        "print([name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        onnxdistill.nothing  # noqa: B018  # the access is what is tested
