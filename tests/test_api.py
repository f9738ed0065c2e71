"""The two functions of the package, as a user imports them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import onnxdistill
from onnxdistill import bench, compress
from onnxdistill.errors import OutputError, RecipeError, explained


def test_bench_times_the_embedded_student() -> None:
    result = bench([Path("models/digits/student.onnx")], runs=50)
    assert result.cases[0].name == "student"
    assert 0 < result.cases[0].latency_ms.median.value < 50


def test_compress_raises_what_the_command_prints(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml does not exist"):
        compress(tmp_path / "none.toml")


def test_a_place_with_a_null_byte_is_refused() -> None:
    with pytest.raises(OutputError, match="embedded null byte"):
        compress("models/digits/recipe.toml", out="a\0b")


def test_errors_of_the_system_say_no_more_than_is_known() -> None:
    assert str(explained(OSError(28, "No space left"), "The output")).startswith(
        "The output cannot be written: No space"
    )
    missing = explained(FileNotFoundError(2, "No such file", "cat.png"), "The output")
    assert str(missing).startswith("cat.png cannot be read or written: No such file.")


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
