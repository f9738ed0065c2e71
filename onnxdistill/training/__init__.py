"""The training engine: one loop for every task, for teachers and for students."""

from __future__ import annotations

from onnxdistill.training.loop import EpochRecord, TrainingResult, TrainingStatus, module_runner, train

__all__ = ["EpochRecord", "TrainingResult", "TrainingStatus", "module_runner", "train"]
