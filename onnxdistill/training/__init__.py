"""The training engine: one loop for every task, for teachers and for students."""

from __future__ import annotations

from onnxdistill.training.loop import Guidance, module_runner, train
from onnxdistill.training.records import EpochRecord, OnStatus, TrainingResult, TrainingStatus

__all__ = ["EpochRecord", "Guidance", "OnStatus", "TrainingResult", "TrainingStatus", "module_runner", "train"]
