"""Several students of one teacher beside each other; `front.json` is exactly this."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from onnxdistill.report.model import Report, ScoreFigures, StageRow

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FrontPoint:
    """A student of a front.

    Attributes:
        asked_speedup: That was planned for.
        folder: Name of its run folder; empty if there is no student.
        shipped: Whether it keeps to its limits.
        student: Its row of the report; None if there is none.
        drop: Points below the teacher on the test split; None if that was not measured.
        note: Why there is no student.
    """

    asked_speedup: float
    folder: str
    shipped: bool
    student: StageRow | None = None
    drop: float | None = None
    note: str = ""


@dataclass(frozen=True)
class StudentFront:
    """Students of one teacher, from slow to fast.

    Attributes:
        schema_version: Of the JSON form.
        onnxdistill_version: That made it.
        name: Of the recipe.
        metric: By which they are scored.
        metric_unit: Its unit.
        max_drop: Points that a student may lie below the teacher; None without such a limit.
        teacher: The teacher's row in the first report.
        points: The students.
        teacher_folder: Name of the run folder that it was trained in; empty if its weights were given.
    """

    schema_version: int
    onnxdistill_version: str
    name: str
    metric: str
    metric_unit: str
    max_drop: float | None
    teacher: StageRow
    points: list[FrontPoint]
    teacher_folder: str = ""

    @classmethod
    def of(
        cls,
        first: Report | StudentFront,
        max_drop: float | None,
        points: Sequence[FrontPoint],
        teacher_folder: str = "",
    ) -> StudentFront:
        """The front of students, with what the report of the first, or an earlier front, tells of the teacher."""
        return cls(
            SCHEMA_VERSION,
            first.onnxdistill_version,
            first.name,
            first.metric,
            first.metric_unit,
            max_drop,
            first.teacher,
            list(points),
            teacher_folder,
        )

    @property
    def made(self) -> int:
        """How many students there are."""
        return sum(point.student is not None for point in self.points)

    def to_json(self) -> str:
        """The front as JSON text."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    def nearest(self) -> str:
        """The best student on each side of the limits, in words: the fastest one, and that which loses least."""
        there = [point for point in self.points if point.student is not None]
        fastest = max(there, key=_speedup)
        scored = [point for point in there if point.drop is not None]
        best = min(scored, key=lambda point: point.drop or 0.0, default=fastest)
        texts = dict.fromkeys(_in_words(point) for point in (best, fastest))
        return " and ".join(texts)


def point_of(report: Report, asked_speedup: float, folder: str) -> FrontPoint:
    """The point of a run's student."""
    return FrontPoint(asked_speedup, folder, report.shipped, report.student, report.drop)


def _speedup(point: FrontPoint) -> float:
    assert point.student is not None
    return 0.0 if point.student.speedup is None else point.student.speedup.ratio


def _in_words(point: FrontPoint) -> str:
    loss = "" if point.drop is None else f", {point.drop:.2f} points below"
    return f"{_speedup(point):.2f} times as fast{loss}"


def scored(point: FrontPoint) -> tuple[float, ScoreFigures] | None:
    """Median latency in ms and score; None without both."""
    row = point.student
    if row is None or row.latency is None or row.score is None:
        return None
    return row.latency.median_ms, row.score
