"""The training engine: one loop for every task, for teachers and for students."""

from __future__ import annotations

from onnxdistill.training.guided import train_guided
from onnxdistill.training.job import Guidance
from onnxdistill.training.records import EpochRecord, OnStatus, TrainingResult, TrainingStatus
from onnxdistill.training.run import follow, leading, train
from onnxdistill.training.validation import best_on_validation, module_runner

__all__ = [
    "EpochRecord",
    "Guidance",
    "OnStatus",
    "TrainingResult",
    "TrainingStatus",
    "best_on_validation",
    "follow",
    "leading",
    "module_runner",
    "train",
    "train_guided",
]
