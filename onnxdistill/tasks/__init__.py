"""Kinds of task: what is particular to one stands behind the `Task` protocol."""

from __future__ import annotations

from onnxdistill.tasks.base import Metric, Runner, Score, Scoring, Task, TrainingBatch
from onnxdistill.tasks.classification import build_classification

__all__ = ["TASKS", "Metric", "Runner", "Score", "Scoring", "Task", "TrainingBatch"]

TASKS = {"classification": build_classification}
