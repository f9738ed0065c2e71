"""The result of a compression run: as data and JSON, as a console table, and as one HTML page."""

from __future__ import annotations

from onnxdistill.report.model import (
    Artifact,
    CutRow,
    DecisionRow,
    GroupCut,
    LatencyFigures,
    LayerRow,
    LimitCheck,
    PlanLog,
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
    "CutRow",
    "DecisionRow",
    "GroupCut",
    "LatencyFigures",
    "LayerRow",
    "LimitCheck",
    "PlanLog",
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
