"""The report as data; `report.json` is exactly this."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxdistill.errors import ModelFileError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ScoreFigures:
    """The task's metric on the test split, in its unit, with a 95 % confidence interval."""

    value: float
    low: float
    high: float
    samples: int
    by_class: dict[str, float]


@dataclass(frozen=True)
class LatencyFigures:
    """Latency of one call, in milliseconds; a percentile that the sample does not support is None."""

    median_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    runs: int


@dataclass(frozen=True)
class SpeedupFigures:
    """How many times faster than the teacher's float32 ONNX, measured in turns.

    `low` and `high` are the ends of the 95 % interval; None where there were too few calls for one.
    """

    ratio: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class StageRow:
    """What a stage left behind.

    Attributes:
        stage: Name of the stage, as in the recipe.
        precision: `float32` or `int8`.
        parameters: Number of parameters of the network.
        macs: Multiply-adds of one sample; None where they are not known.
        size_bytes: Size of the ONNX file.
        score: None if accuracy was not measured.
        latency: Of this stage's ONNX file.
        speedup: Over the teacher.
        seconds: How long the stage took.
        applied: False if the stage's result was measured and not used.
        summary: One line of what the stage did.
    """

    stage: str
    precision: str
    parameters: int
    macs: int | None
    size_bytes: int
    score: ScoreFigures | None
    latency: LatencyFigures | None
    speedup: SpeedupFigures | None
    seconds: float
    applied: bool
    summary: str


@dataclass(frozen=True)
class LimitCheck:
    """One limit of the recipe against the measured figure.

    Attributes:
        measured: None if it could not be measured; then `met` is None as well.
        low: Lower end of the 95 % interval; None where there is none.
        high: Its upper end.
        met: Whether the student keeps to it; one that was not measured does not keep it from shipping.
    """

    name: str
    limit: float
    measured: float | None
    low: float | None
    high: float | None
    met: bool | None
    unit: str


@dataclass(frozen=True)
class GroupCut:
    """A channel group before and after pruning; `layers` are the layers that it runs through."""

    name: str
    channels_before: int
    channels_after: int
    layers: list[str]


@dataclass(frozen=True)
class TrainingLog:
    """Epoch by epoch: `score` is the metric on validation."""

    stage: str
    best_epoch: int
    start_score: float
    epochs: list[dict[str, float]]


@dataclass(frozen=True)
class SchemeRow:
    """A way to quantize that was timed, and how many times faster than float32 it is.

    `low` and `high` are the ends of the 95 % interval; None where there were too few calls for one.
    """

    scheme: str
    ratio: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RungRow:
    """Something that was tried for int8's accuracy.

    Attributes:
        name: What was done.
        points: Of the metric on validation, below float32; None if it could not be done.
        kept: Whether less was lost than ever before.
        seconds: How long it took.
        note: Why it was not used, if there is more to say.
    """

    name: str
    points: float | None
    kept: bool
    seconds: float
    note: str


@dataclass(frozen=True)
class TargetRow:
    """A file for another kind of machine; its score is that of ONNX Runtime's CPU provider on this machine."""

    target: str
    summary: str
    size_bytes: int
    score: ScoreFigures | None


@dataclass(frozen=True)
class QuantizationLog:
    """How the int8 file was found.

    Attributes:
        limit: Points of the metric on validation that int8 could cost.
        schemes: What was timed.
        rungs: What was tried for accuracy; nothing without data.
    """

    limit: float
    schemes: list[SchemeRow]
    rungs: list[RungRow]


@dataclass(frozen=True)
class CutRow:
    """A cut of a plan: milliseconds of a call that were allowed, predicted and measured, and the damage.

    `damage` is by how much the outputs were to move: as a distillation loss against the network before the cut. A last
    cut that is made again may be allowed more than the whole budget: by as much as plans turned out faster than
    predicted.
    """

    budget_ms: float
    predicted_ms: float
    measured_ms: float
    damage: float


@dataclass(frozen=True)
class DecisionRow:
    """What a plan decided on something.

    Attributes:
        kind: `width`, in channels; `block`, 1 while it is there and 0 when it has gone; `pair`, the rank of the
            low-rank pair in the place of a layer, or 0.
        name: Of the channel group, the block, or the layer.
        before: What it was.
        after: What it is.
        damage: By how much the outputs were to move, summed up over cuts.
        other: What else it could be: what it was before the last cut that changed it, or else what would save most time
            for its damage. None if nothing else would be faster.
        other_ms: By how much longer a call would take then, after that cut; shorter, if negative.
        other_damage: By how much more the outputs would move then; None if without bounds.
    """

    kind: str
    name: str
    before: int
    after: int
    damage: float
    other: int | None
    other_ms: float | None
    other_damage: float | None


@dataclass(frozen=True)
class LayerRow:
    """A layer before and after a plan.

    Attributes:
        name: Of the module.
        operation: Precision, kernel and sizes, in words.
        channels_before: In and out.
        channels_after: In and out; None if the layer has gone.
        rank: Of the low-rank pair that it has become; None if it has not.
        before_ms: What it took in the whole network as deployed; None if that could not be seen.
        predicted_ms: What it was to take after the last cut; None if it was to go.
        after_ms: What it takes before the last training; None if it has gone, or could not be seen.
    """

    name: str
    operation: str
    channels_before: list[int]
    channels_after: list[int] | None
    rank: int | None
    before_ms: float | None
    predicted_ms: float | None
    after_ms: float | None


@dataclass(frozen=True)
class PlanLog:
    """How a latency budget was spent; `budget_ms` is a little less than was asked for, to be kept to at the end."""

    budget_ms: float
    cuts: list[CutRow]
    decisions: list[DecisionRow]
    layers: list[LayerRow]


@dataclass(frozen=True)
class Artifact:
    """A shipped file."""

    file: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Report:
    """Everything measured in one run of `compress`, and what it was made from.

    `shipped` says whether no limit was missed. `data` and `sources` hold digests: of the splits, and of the files that
    the networks are built from, by their place in the recipe.
    """

    schema_version: int
    onnxdistill_version: str
    name: str
    task: str
    metric: str
    metric_unit: str
    created: str
    seconds: float
    shipped: bool
    student_precision: str
    rows: list[StageRow]
    limits: list[LimitCheck]
    notes: list[str]
    groups: list[GroupCut]
    trainings: list[TrainingLog]
    artifacts: list[Artifact]
    data: dict[str, dict[str, int | str]]
    recipe: dict[str, Any]
    host: dict[str, Any]
    bench: dict[str, Any]
    quantization: QuantizationLog | None = None
    targets: list[TargetRow] = field(default_factory=list)
    plan: PlanLog | None = None
    sources: dict[str, dict[str, str | None]] = field(default_factory=dict)

    @property
    def teacher(self) -> StageRow:
        """The row that everything is compared with."""
        return self.rows[0]

    @property
    def student(self) -> StageRow:
        """The row of the shipped student."""
        return [row for row in self.rows if row.applied][-1]

    @property
    def drop(self) -> float | None:
        """Points that the student lies below the teacher on the test split."""
        if self.teacher.score is None or self.student.score is None:
            return None
        return self.teacher.score.value - self.student.score.value

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def load_report(path: Path) -> Report:
    """Reads a `report.json`.

    Raises:
        ModelFileError: If the file is missing or not a report of a schema that is known here.
    """
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read as a report: {error}.", "Name a run's report.json.") from error
    if not isinstance(tables, dict) or tables.get("schema_version") != SCHEMA_VERSION:
        raise ModelFileError(
            f"{path} is not a report of schema version {SCHEMA_VERSION}.",
            "Name a report.json of this version.",
        )
    try:
        return _report(tables)
    except (KeyError, TypeError, AttributeError) as error:  # results of other commands have versions, too
        raise ModelFileError(f"{path} is not the report of a run.", "Name a run's report.json.") from error


def _report(tables: dict[str, Any]) -> Report:
    tables["rows"] = [_row(row) for row in tables["rows"]]
    tables["limits"] = [LimitCheck(**entry) for entry in tables["limits"]]
    tables["groups"] = [GroupCut(**entry) for entry in tables["groups"]]
    tables["trainings"] = [TrainingLog(**entry) for entry in tables["trainings"]]
    tables["artifacts"] = [Artifact(**entry) for entry in tables["artifacts"]]
    tables["quantization"] = _quantization(tables.get("quantization"))
    tables["targets"] = [_target(row) for row in tables.get("targets", [])]
    tables["plan"] = _plan(tables.get("plan"))
    return Report(**tables)


def _plan(tables: dict[str, Any] | None) -> PlanLog | None:
    if tables is None:
        return None
    return PlanLog(
        tables["budget_ms"],
        [CutRow(**row) for row in tables["cuts"]],
        [DecisionRow(**row) for row in tables["decisions"]],
        [LayerRow(**row) for row in tables["layers"]],
    )


def _quantization(tables: dict[str, Any] | None) -> QuantizationLog | None:
    if tables is None:
        return None
    schemes = [SchemeRow(**row) for row in tables["schemes"]]
    return QuantizationLog(tables["limit"], schemes, [RungRow(**row) for row in tables["rungs"]])


def _target(tables: dict[str, Any]) -> TargetRow:
    return TargetRow(**{**tables, "score": None if tables["score"] is None else ScoreFigures(**tables["score"])})


def _row(tables: dict[str, Any]) -> StageRow:
    kinds = {"score": ScoreFigures, "latency": LatencyFigures, "speedup": SpeedupFigures}
    nested = {key: None if tables[key] is None else kind(**tables[key]) for key, kind in kinds.items()}
    return StageRow(**{**tables, **nested})
