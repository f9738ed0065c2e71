from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from onnxdistill.device.bench import bench
from onnxdistill.device.display import show_bench
from onnxdistill.device.verdicts import Slo

STUDENT = Path("models/digits/student.onnx")
RESULT = bench({"teacher": STUDENT, "a longer name": STUDENT}, runs=120, check_outputs=True, slo=Slo(50.0, 1e6))


def shown(width: int) -> str:
    file = io.StringIO()
    show_bench(RESULT, Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_is_readable_at_every_width(width: int) -> None:
    text = shown(width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for case in RESULT.cases:
        assert f"{case.name} " in text
        median = case.latency_ms.median.value
        assert f"{median:.{3 if median >= 1 else 4}f}" in text  # four significant digits
    fastest = RESULT.cases[-1].speedup
    assert f"{fastest.value:.2f}x" in text


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    assert "items/s" in shown(80)
    assert "items/s" not in shown(40)


def test_a_reason_that_models_share_is_said_once() -> None:
    assert len(RESULT.doubts()) == len(set(RESULT.doubts()))
