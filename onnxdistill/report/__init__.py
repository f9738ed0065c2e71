"""The result of a compression run: as data and JSON, as a console table, and as one HTML page."""

from __future__ import annotations

from onnxdistill.report.model import (
    Artifact,
    GroupCut,
    LatencyFigures,
    LimitCheck,
    Report,
    ScoreFigures,
    SpeedupFigures,
    StageRow,
    TrainingLog,
    load_report,
)

__all__ = [
    "Artifact",
    "GroupCut",
    "LatencyFigures",
    "LimitCheck",
    "Report",
    "ScoreFigures",
    "SpeedupFigures",
    "StageRow",
    "TrainingLog",
    "load_report",
]
