"""All trainings of a student: between the cuts of its plan, the long one after them, and the one with int8."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from onnxdistill.errors import TrainingError
from onnxdistill.fakequant import FakeQuantized, UnsupportedOperatorError
from onnxdistill.journal import Journal
from onnxdistill.recipe import DistillTable, Recipe
from onnxdistill.record import Record
from onnxdistill.stages.distill import distill
from onnxdistill.tasks import Task
from onnxdistill.training import TrainingResult
from onnxdistill.training.checkpoint import fingerprint
from onnxdistill.training.records import TrainingStatus

# Of the long training, where those before it have taken all of the time: it does one epoch.
_SHORTEST_MINUTES = 0.01
# Between the seeds of two trainings of a run; other runs may have the seeds that follow.
_SEEDS_APART = 100_003
_SEEDS = 2**63


class Finetuning:
    """Trains what becomes of a student, as `[distill]` says.

    Args:
        recipe: Of the run.
        task: Gives batches, loss and score.
        teachers: The networks that it learns from.
        record: Is told how the trainings stand, and gets their logs.
        journal: Keeps their states.
    """

    def __init__(
        self, recipe: Recipe, task: Task, teachers: Sequence[nn.Module], record: Record, journal: Journal
    ) -> None:
        self._recipe = recipe
        self._task = task
        self._teachers = list(teachers)
        self._record = record
        self._journal = journal
        self._spent_minutes = 0.0

    def after_cut(self, network: nn.Module, cut: int) -> nn.Module:
        """What a plan has left after a cut, from 1, trained before more goes.

        Layers that `[distill.features]` names may be gone, and none are followed. The time counts for
        `distill.minutes`. What diverges is left as it is.
        """
        table, plan = self._recipe.distill, self._recipe.plan
        assert table is not None  # or else the recipe is refused
        assert plan is not None
        if not self._task.measurable:
            return network
        minutes = table.minutes
        if minutes is not None:
            minutes -= self._spent_minutes
            if minutes <= 0:
                self._record.note(f"plan, cut {cut}: no time was left to train.")
                return network
        table = table.without_features().model_copy(update={"epochs": plan.epochs, "minutes": minutes})
        seed = (self._recipe.seed + cut * _SEEDS_APART) % _SEEDS
        started = time.monotonic()
        try:
            result = self._train(network, table, self._journal.checkpoint_of_cut(cut), seed, f"cut {cut}")
        except TrainingError as error:
            self._record.note(f"plan, cut {cut}: {error.what}")
            self._spent_minutes += self._journal.decision(
                f"minutes of {fingerprint(network, table, str(seed))}, which diverged",
                lambda: (time.monotonic() - started) / 60,
            )
            return network
        self._record.log(f"plan, cut {cut}", result)
        # As they were kept with the training: after an interruption, they are the same.
        self._spent_minutes += sum(epoch.seconds for epoch in result.history) / 60
        return result.network

    def whole(self, network: nn.Module, table: DistillTable) -> TrainingResult:
        """The long training.

        Raises:
            TrainingError: If it diverges.
        """
        if table.minutes is not None and self._spent_minutes:
            self._record.note(
                f"distill: {self._spent_minutes:.3g} of {table.minutes:.3g} minutes went into trainings between cuts."
            )
            left = max(table.minutes - self._spent_minutes, _SHORTEST_MINUTES)
            table = table.model_copy(update={"minutes": left})
        result = self._train(network, table, self._journal.checkpoint("distill"), self._recipe.seed)
        self._record.log("distill", result)
        return result

    def with_int8(self, quantized: Path, target: Path, source: Path) -> str:
        """Trains an int8 file further and writes the result; returns why it could not, or nothing.

        Args:
            quantized: The int8 file.
            target: Gets the result.
            source: The float file that it was made from.
        """
        assert self._recipe.quantize is not None
        try:
            module = FakeQuantized.from_file(quantized, source)
        except UnsupportedOperatorError as error:
            return error.what
        try:
            result = self._train(module, self._int8_table(), self._journal.checkpoint("quantize"), self._recipe.seed)
        except TrainingError as error:  # what was reached without is still there
            return error.what
        self._record.log("quantize", result)
        assert isinstance(result.network, FakeQuantized)
        result.network.write(target)
        return ""

    def _int8_table(self) -> DistillTable:
        """How an int8 file is trained."""
        table, quantize = self._recipe.distill or DistillTable(epochs=1), self._recipe.quantize
        assert quantize is not None
        changes: dict[str, Any] = {
            "epochs": quantize.epochs,
            # Batch norms are folded into layers, which then need small steps.
            "learning_rate": quantize.learning_rate,
            "optimizer": "adamw",
            "weight_decay": 0.0,
            # Layers have other names in the ONNX file, and the time was meant for the float student.
            "layer_decay": 1.0,
            "minutes": None,
            # Scales are exact where they ship.
            "device": "cpu",
            "precision": table.precision if table.device == "cpu" else "auto",
        }
        return table.without_features().model_copy(update=changes)

    def _train(
        self, network: nn.Module, table: DistillTable, checkpoint: Path | None, seed: int, part: str = ""
    ) -> TrainingResult:
        def show(status: TrainingStatus) -> None:
            self._record.show_training(replace(status, part=part))

        return distill(network, self._teachers, self._task, table, seed, show, checkpoint)
