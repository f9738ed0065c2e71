from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from onnxdistill.device.display import show_bench
from onnxdistill.device.result import BenchResult
from onnxdistill.report import load_report

RESULT = BenchResult.from_json(load_report(Path("benchmarks/resnet20-cifar10/report.json")).bench)


def shown(width: int) -> str:
    file = io.StringIO()
    show_bench(RESULT, Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_is_readable_at_every_width(width: int) -> None:
    text = shown(width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for model in RESULT.models:
        assert f"{model.name} " in text
        median = model.latency_ms.median
        assert f"{median:.{3 if median >= 1 else 4}f}" in text  # four significant digits
    fastest = RESULT.models[-1].speedup
    assert fastest is not None
    assert f"{fastest.value:.2f}x" in text


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    assert "items/s" in shown(80)
    assert "items/s" not in shown(40)


def test_a_reason_that_models_share_is_said_once() -> None:
    assert len(RESULT.doubts()) == len(set(RESULT.doubts()))
