"""The pictures of the HTML page, as SVG text that is legible on light and dark paper."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from onnxdistill.report.front import FrontPoint, StudentFront, scored
from onnxdistill.report.model import Report, ScoreFigures, TrainingLog

INK = "#7d8590"  # reads on white and on near-black
TEACHER = "#8b949e"
STUDENT = "#1f9d6b"
STAGE = "#5b8def"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "onnxdistill",  # the same report gives the same bytes
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.18,
}


def latency_chart(report: Report) -> str | None:
    """Cumulative distribution of the measured latencies of every stage's ONNX file."""
    series = {case["name"]: np.concatenate(case["times_ms"]) for case in report.bench.get("cases", [])}
    if not series:
        return None
    with _figure() as (axes, result):
        student = report.student.stage
        for name, times in series.items():
            color = TEACHER if name == report.teacher.stage else STUDENT if name == student else STAGE
            shares = np.arange(1, len(times) + 1) / len(times)
            wide = name in (report.teacher.stage, student)
            axes.step(np.sort(times), 100 * shares, color=color, lw=2.2 if wide else 1.1, alpha=1 if wide else 0.6)
            axes.annotate(
                name,
                (float(np.median(times)), 50),
                xytext=(4, 6 if wide else -12),
                textcoords="offset points",
                color=color,
                weight="bold" if wide else "normal",
            )
        # The slowest per cent of a noisy machine would squeeze everything else to the left.
        axes.set_xlim(0, 1.15 * max(float(np.percentile(times, 97)) for times in series.values()))
        axes.set_xlabel("latency of one call, ms")
        axes.set_ylabel("calls at least as fast, %")
    return result[0]


def accuracy_chart(report: Report) -> str | None:
    """Accuracy against latency, a point a stage."""
    rows = [row for row in report.rows if row.score is not None and row.latency is not None]
    if not rows:
        return None
    with _figure() as (axes, result):
        for index, row in enumerate(rows):
            assert row.score is not None
            assert row.latency is not None
            color = TEACHER if row is report.teacher else STUDENT if row is report.student else STAGE
            x, y = row.latency.median_ms, row.score.value
            axes.errorbar(
                x,
                y,
                [[y - row.score.low], [row.score.high - y]],
                fmt="o",
                color=color,
                ms=8,
                capsize=3,
                lw=1.2,
            )
            offset = (9, 7 if index % 2 == 0 else -16)
            axes.annotate(row.stage, (x, y), xytext=offset, textcoords="offset points", color=color)
        axes.margins(x=0.2, y=0.12)
        axes.set_xlim(left=0)
        axes.set_xlabel("median latency, ms")
        axes.set_ylabel(f"{report.metric}, {report.metric_unit}")
    return result[0]


def front_chart(front: StudentFront) -> str | None:
    """Accuracy against latency of several students, those that keep to their limits in another colour.

    Each latency is that of the teacher over the measured ratio: students may have been timed on different days.
    """
    points = [(point, _beside(front, point, known)) for point in front.points if (known := scored(point)) is not None]
    if not points:
        return None
    with _figure() as (axes, result):
        places = undominated([(latency_ms, score.value) for _, (latency_ms, score) in points])
        axes.plot(*zip(*places, strict=True), color=STAGE, lw=1.2, alpha=0.5)
        for point, (x, score) in points:
            color = STUDENT if point.shipped else STAGE
            y = score.value
            axes.errorbar(x, y, [[y - score.low], [score.high - y]], fmt="o", color=color, ms=8, capsize=3, lw=1.2)
            # To the lower right, where the line does not go.
            axes.annotate(f"{point.asked_speedup:g}x", (x, y), xytext=(9, -16), textcoords="offset points", color=color)
        if front.teacher.score is not None:
            value = front.teacher.score.value
            axes.axhline(value, color=TEACHER, lw=1.2)
            axes.annotate(
                "teacher", (0, value), xycoords=("axes fraction", "data"), xytext=(4, 4),
                textcoords="offset points", color=TEACHER,
            )  # fmt: skip
            if front.max_drop is not None:
                axes.axhline(value - front.max_drop, color=TEACHER, lw=1.0, ls="--")
        axes.margins(x=0.2, y=0.15)
        axes.set_xlim(left=0)
        axes.set_xlabel("the teacher's median latency over the speed-up, ms")
        axes.set_ylabel(f"{front.metric}, {front.metric_unit}")
    return result[0]


def _beside(front: StudentFront, point: FrontPoint, place: tuple[float, ScoreFigures]) -> tuple[float, ScoreFigures]:
    """The place of a student if the teacher is as fast as it was in the first run."""
    teacher, student = front.teacher.latency, point.student
    if teacher is None or student is None or student.speedup is None:
        return place
    return teacher.median_ms / student.speedup.ratio, place[1]


def undominated(places: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of latency and score that no other one beats in both, from fast to slow."""
    best: list[tuple[float, float]] = []
    for latency_ms, score in sorted(places, key=lambda place: (place[0], -place[1])):
        if not best or score > best[-1][1]:
            best.append((latency_ms, score))
    return best


def training_chart(report: Report, log: TrainingLog) -> str | None:
    """The validation score after every epoch; the kept one is marked."""
    if not log.epochs:
        return None
    with _figure(height=2.6) as (axes, result):
        epochs = [0, *(int(entry["epoch"]) for entry in log.epochs)]
        scores = [log.start_score, *(entry["score"] for entry in log.epochs)]
        axes.plot(epochs, scores, color=STAGE, lw=1.8, marker="o", ms=3)
        axes.plot([log.best_epoch], [scores[log.best_epoch]], "o", color=STUDENT, ms=8)
        axes.annotate(
            f"{scores[log.best_epoch]:.2f} kept",
            (log.best_epoch, scores[log.best_epoch]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color=STUDENT,
        )
        axes.margins(y=0.22)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation, {report.metric_unit}")
    return result[0]


@contextmanager
def _figure(height: float = 3.4) -> Iterator[tuple[Axes, list[str]]]:
    result: list[str] = []
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        yield figure.add_subplot(), result
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    result.append(text[text.index("<svg") :])
