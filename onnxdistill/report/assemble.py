"""Puts what the stages measured together into a report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from onnxdistill import __version__
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.result import BenchResult, CaseTiming
from onnxdistill.recipe import LimitsTable, OnnxRecipe, Recipe
from onnxdistill.report.model import (
    SCHEMA_VERSION,
    Artifact,
    GroupCut,
    LatencyFigures,
    LimitCheck,
    PlanLog,
    QuantizationLog,
    Report,
    ScoreFigures,
    SpeedupFigures,
    StageRow,
    TargetRow,
    TrainingLog,
)
from onnxdistill.tasks.base import Metric, Score, Scoring, paired_interval

ROUNDING = 1e-9


@dataclass(frozen=True)
class Step:
    """A stage's ONNX file and what is known of it before latencies are measured."""

    stage: str
    path: Path
    precision: Literal["float32", "int8"]
    parameters: int
    macs: int | None
    score: Score | None
    seconds: float
    applied: bool
    summary: str


@dataclass(frozen=True)
class TargetFile:
    """A file for another kind of machine, and its score on this one."""

    target: str
    path: Path
    summary: str
    score: Score | None


def assemble(
    recipe: Recipe | OnnxRecipe,
    scoring: Scoring,
    steps: list[Step],
    timings: BenchResult,
    seconds: float,
    notes: list[str],
    groups: list[GroupCut],
    trainings: list[TrainingLog],
    quantization: QuantizationLog | None = None,
    targets: Sequence[TargetFile] = (),
    plan: PlanLog | None = None,
    sources: Mapping[str, dict[str, str | None]] | None = None,
) -> Report:
    """Builds the report; the first step is the teacher, and the last applied one the student."""
    by_name = {timing.name: timing for timing in timings.cases}
    rows = [_row(step, by_name[step.stage]) for step in steps]
    student = [step for step in steps if step.applied][-1]
    median_ms = by_name[student.stage].latency_ms.median
    limits = _check_limits(recipe.limits, scoring.metric, steps[0], student, rows[steps.index(student)], median_ms)
    if not scoring.measurable:
        unmeasured = (
            "Accuracy was not measured: the teacher has neither weights nor training. If its function loads weights, "
            "set teacher.weights = 'own'."
        )
        notes = [unmeasured, *notes]
    return Report(
        schema_version=SCHEMA_VERSION,
        onnxdistill_version=__version__,
        name=recipe.name,
        task=recipe.task,
        metric=scoring.metric.name,
        metric_unit=scoring.metric.unit,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=seconds,
        shipped=all(check.met is not False for check in limits),
        student_precision=student.precision,
        rows=rows,
        limits=limits,
        notes=list(dict.fromkeys([*notes, *_shaky(timings)])),
        groups=groups,
        trainings=trainings,
        artifacts=[_artifact(name, path) for name, path in shipped_files(steps, targets).items()],
        data=scoring.describe_data(),
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        host=timings.host.to_json(),
        bench=_portable(timings),
        quantization=quantization,
        targets=[_target_row(one) for one in targets],
        plan=plan,
        sources=dict(sources or {}),
    )


def shipped_files(steps: Sequence[Step], targets: Sequence[TargetFile]) -> dict[str, Path]:
    """The ONNX files that ship, by the names that they get."""
    student = [step for step in steps if step.applied][-1]
    others = {f"student-{one.target}.onnx": one.path for one in targets}
    return {"teacher.onnx": steps[0].path, "student.onnx": student.path, **others}


def _shaky(timings: BenchResult) -> list[str]:
    doubts = timings.doubts()
    return [f"Latencies are shaky. {' '.join(doubts)}"] if doubts else []


def _portable(timings: BenchResult) -> dict[str, Any]:
    """The measurement without the scratch folder that its files lay in."""
    cases = tuple(replace(timing, path=f"{timing.name}.onnx") for timing in timings.cases)
    return replace(timings, cases=cases).to_json()


def _row(step: Step, timing: CaseTiming) -> StageRow:
    latency, speedup = timing.latency_ms, timing.speedup
    return StageRow(
        stage=step.stage,
        precision=step.precision,
        parameters=step.parameters,
        macs=step.macs,
        size_bytes=timing.size_bytes,
        score=None if step.score is None else _score(step.score),
        latency=LatencyFigures(
            median_ms=latency.median.value,
            p90_ms=_value(latency.p90),
            p95_ms=_value(latency.p95),
            p99_ms=_value(latency.p99),
            runs=latency.count,
        ),
        speedup=SpeedupFigures(speedup.value, *speedup.interval),
        seconds=step.seconds,
        applied=step.applied,
        summary=step.summary,
    )


def _target_row(file: TargetFile) -> TargetRow:
    score = None if file.score is None else _score(file.score)
    return TargetRow(file.target, file.summary, file.path.stat().st_size, score)


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _score(score: Score) -> ScoreFigures:
    return ScoreFigures(score.value, *score.interval, score.samples, score.by_class)


def _check_limits(
    limits: LimitsTable, metric: Metric, teacher: Step, student: Step, student_row: StageRow, median_ms: Estimate
) -> list[LimitCheck]:
    checks = []
    if limits.max_drop is not None:
        checks.append(check_drop(limits.max_drop, metric, teacher.score, student.score))
    if limits.min_speedup is not None and student_row.speedup is not None:
        speedup = student_row.speedup
        met = speedup.ratio >= limits.min_speedup
        checks.append(LimitCheck("min_speedup", limits.min_speedup, speedup.ratio, speedup.low, speedup.high, met, "×"))
    if limits.max_latency_ms is not None:
        met = median_ms.value <= limits.max_latency_ms
        low, high = median_ms.interval
        checks.append(LimitCheck("max_latency_ms", limits.max_latency_ms, median_ms.value, low, high, met, "ms"))
    return checks


def check_drop(limit: float, metric: Metric, teacher: Score | None, student: Score | None) -> LimitCheck:
    """Holds the points that a student lies below its teacher against a limit; one that is just met is met."""
    if teacher is None or student is None:  # latency only: nothing to hold against the limit, as a note says, too
        return LimitCheck("max_drop", limit, None, None, None, None, "points")
    drop = metric.drop(teacher.value, student.value)
    low, high = paired_interval(teacher, student, drop) or (None, None)
    met = drop <= limit + ROUNDING  # 88.63 - 87.13 is not quite 1.5
    return LimitCheck("max_drop", limit, drop, low, high, met, "points")


def _artifact(name: str, path: Path) -> Artifact:
    content = path.read_bytes()
    return Artifact(name, len(content), hashlib.sha256(content).hexdigest())
