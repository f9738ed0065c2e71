from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from onnxdistill.device.bench import bench
from onnxdistill.device.display import show_bench
from onnxdistill.device.result import BenchResult
from onnxdistill.device.verdicts import Slo

STUDENT = Path("models/digits/student.onnx")


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return bench({"teacher": STUDENT, "a longer name": STUDENT}, runs=120, check_outputs=True, slo=Slo(50.0, 1e6))


def shown(result: BenchResult, width: int) -> str:
    file = io.StringIO()
    show_bench(result, Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_is_readable_at_every_width(result: BenchResult, width: int) -> None:
    text = shown(result, width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for case in result.cases:
        assert f"{case.name} " in text
        median = case.latency_ms.median.value
        assert f"{median:.{3 if median >= 1 else 4}f}" in text  # four significant digits
    fastest = result.cases[-1].speedup
    assert f"{fastest.value:.2f}x" in text


def test_a_narrow_terminal_gets_fewer_columns(result: BenchResult) -> None:
    assert "items/s" in shown(result, 80)
    assert "items/s" not in shown(result, 40)


def test_a_reason_that_models_share_is_said_once(result: BenchResult) -> None:
    assert len(result.doubts()) == len(set(result.doubts()))
