"""Several students beside each other, from made-up rows with round numbers."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from onnxdistill.report import LatencyFigures, ScoreFigures, SpeedupFigures, StageRow
from onnxdistill.report.charts import front_chart, undominated
from onnxdistill.report.front import FrontPoint, StudentFront
from onnxdistill.report.frontpage import render_front_page
from onnxdistill.report.fronttable import render_front


def row(score: float | None, median_ms: float) -> StageRow:
    return StageRow(
        stage="quantize",
        precision="int8",
        parameters=1000,
        macs=1000,
        size_bytes=round(100_000 * median_ms),
        score=None if score is None else ScoreFigures(score, score - 1, score + 1, 100, {}),
        latency=LatencyFigures(median_ms, None, None, None, 50),
        speedup=SpeedupFigures(1 / median_ms, 0.9 / median_ms, 1.1 / median_ms),
        seconds=1.0,
        applied=True,
        summary="",
    )


def front(*points: FrontPoint, max_drop: float | None = 1.0) -> StudentFront:
    return StudentFront(1, "0", "made-up", "top-1 accuracy", "%", max_drop, row(90.0, 1.0), list(points))


TWICE = FrontPoint(2.0, "2x", True, row(89.5, 0.5), 0.5)
FOUR = FrontPoint(4.0, "4x.missed", False, row(85.0, 0.25), 5.0)
NEVER = FrontPoint(8.0, "", False, note="5 x is the <most>.")


def shown(found: StudentFront, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(render_front(found))
    return file.getvalue()


def test_the_line_goes_through_what_nothing_else_beats() -> None:
    places = [(2.0, 90.0), (1.0, 85.0), (1.5, 84.0), (0.5, 80.0), (2.0, 89.0), (3.0, 90.0)]
    assert undominated(places) == [(0.5, 80.0), (1.0, 85.0), (2.0, 90.0)]


@pytest.mark.parametrize("width", [80, 140])
def test_the_table(width: int) -> None:
    text = shown(front(TWICE, FOUR, NEVER), width)
    assert all(len(line) <= width for line in text.splitlines())
    lines = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.strip()}
    assert lines["made-up:"] == "made-up: 2 of 3 students"
    assert lines["teacher"] == "teacher 1.00× 1.00 90.00 % – 100"
    assert lines["2x"] == "2x 2.00× 0.500 89.50 % 0.50 50 met"
    assert lines["4x"] == "4x 4.00× 0.250 85.00 % 5.00 25 missed"
    assert lines["8x"] == "8x – – – – – none"
    assert lines["·"] == "· 8x: 5 x is the <most>."


def test_a_narrow_terminal_gets_the_columns_that_matter() -> None:
    text = shown(front(TWICE, FOUR, NEVER), 40)
    assert all(len(line) <= 40 for line in text.splitlines())
    lines = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.strip()}
    assert lines["4x"] == "4x 4.00× 5.00 missed"
    assert lines["8x"] == "8x – – none"


def test_the_page_links_to_the_students_and_escapes() -> None:
    page = render_front_page(front(TWICE, FOUR, NEVER))
    assert '<a href="2x/report.html">2x</a>' in page
    assert "4.00×" in page
    assert "5 x is the &lt;most&gt;." in page
    assert page.count("<svg") == 1
    assert "made-up: 2 of 3 students" in page
    assert page == render_front_page(front(TWICE, FOUR, NEVER))


def test_the_page_links_to_the_run_of_a_teacher_that_was_trained() -> None:
    assert "teacher/report.html" not in render_front_page(front(TWICE))
    page = render_front_page(replace(front(TWICE), teacher_folder="teacher"))
    assert '<a href="teacher/report.html">teacher</a>' in page


def test_students_of_other_days_are_placed_by_their_ratios() -> None:
    """On a day on which everything took twice as long, the teacher did, too."""
    slow = row(85.0, 0.25)
    assert slow.latency is not None
    later = replace(slow, latency=replace(slow.latency, median_ms=0.5))
    assert front_chart(front(TWICE, replace(FOUR, student=later))) == front_chart(front(TWICE, FOUR))


def test_without_accuracy_there_is_no_chart() -> None:
    found = front(FrontPoint(2.0, "2x", True, row(None, 0.5)), max_drop=None)
    assert "<svg" not in render_front_page(found)
    assert "not measured" in shown(found, 100)


def test_the_nearest_on_each_side() -> None:
    assert front(TWICE, FOUR, NEVER).nearest() == (
        "2.00 times as fast, 0.50 points below and 4.00 times as fast, 5.00 points below"
    )
    assert front(FOUR).nearest() == "4.00 times as fast, 5.00 points below"


def test_as_json() -> None:
    tables = json.loads(front(TWICE, NEVER).to_json())
    assert tables["points"][0]["student"]["latency"]["median_ms"] == 0.5
    assert tables["points"][1]["student"] is None
    assert tables["max_drop"] == 1.0
