"""The result of a compression run: as data and JSON, as a console table, and as one HTML page."""

from __future__ import annotations

from onnxdistill.report.model import (
    Artifact,
    GroupCut,
    LatencyFigures,
    LimitCheck,
    QuantizationLog,
    Report,
    RungRow,
    SchemeRow,
    ScoreFigures,
    SpeedupFigures,
    StageRow,
    TargetRow,
    TrainingLog,
    load_report,
)

__all__ = [
    "Artifact",
    "GroupCut",
    "LatencyFigures",
    "LimitCheck",
    "QuantizationLog",
    "Report",
    "RungRow",
    "SchemeRow",
    "ScoreFigures",
    "SpeedupFigures",
    "StageRow",
    "TargetRow",
    "TrainingLog",
    "load_report",
]
