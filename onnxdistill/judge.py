"""What decides between int8 files of a student: validation accuracy, and latency beside the float file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.session import SessionSettings
from onnxdistill.gate import FileGate
from onnxdistill.quantization.ladder import Loss
from onnxdistill.recipe import OnnxRecipe, Recipe
from onnxdistill.report.assemble import ROUNDING
from onnxdistill.stages.verify import verify
from onnxdistill.tasks.base import Score, Scoring, paired_interval


class Int8Judge:
    """Judges int8 files; the test split is never looked at.

    Args:
        recipe: Says what int8 may cost, and how far below the teacher the student may be.
        scoring: Scores files.
        settings: How they are run.
        gate: Times them.
        teacher: The teacher's float file.
        student: The student's float file.

    Attributes:
        measurable: Whether there is anything to score files by.
        limit: Points that int8 may cost: as the recipe says, or less where less is left of the student's own limit.
    """

    def __init__(
        self,
        recipe: Recipe | OnnxRecipe,
        scoring: Scoring,
        settings: SessionSettings,
        gate: FileGate,
        teacher: Path,
        student: Path,
    ) -> None:
        assert recipe.quantize is not None
        self._scoring = scoring
        self._settings = settings
        self._gate = gate
        self._limits = recipe.limits
        self._teacher = teacher
        self._student = student
        self.measurable = scoring.measurable
        self._score = self._scored(student) if scoring.measurable else None
        self._cpu = SessionSettings(threads=settings.threads)
        self._score_on_cpu: Score | None = None
        self._left: float | None = None
        if self._score is not None and recipe.limits.max_drop is not None:
            first = self._score if teacher == student else self._scored(teacher)
            left = recipe.limits.max_drop - scoring.metric.drop(first.value, self._score.value)
            # A student that misses its limit in float as well is no worse for that.
            self._left = max(left, 0.0) if left >= -ROUNDING else None
        self.limit = recipe.quantize.max_drop if self._left is None else min(recipe.quantize.max_drop, self._left)

    def loss(self, path: Path) -> Loss:
        """What a file costs on validation, compared with the float student."""
        assert self._score is not None, "nothing can be measured"
        return self._difference(self._score, self._scored(path))

    def loss_elsewhere(self, path: Path, *, exact: bool) -> Loss:
        """The same of a file for another kind of machine: both are run by the processor, whatever runs the student."""
        if self._score_on_cpu is None:
            is_cpu = self._settings.provider == self._cpu.provider
            self._score_on_cpu = self._score if is_cpu else self._scored(self._student, settings=self._cpu)
        assert self._score_on_cpu is not None, "nothing can be measured"
        return self._difference(self._score_on_cpu, self._scored(path, exact, self._cpu))

    def speedup(self, path: Path) -> Estimate:
        """How many times faster a file is than the float student."""
        return self._gate.speedup(self._student, path)

    def keeps_speed(self, path: Path) -> bool:
        """Whether a file keeps the recipe's limits on latency, which are those beside the teacher."""
        if self._limits.min_speedup is None and self._limits.max_latency_ms is None:
            return True
        ratio = self._gate.speedup(self._teacher, path, "close").value
        enough = self._limits.min_speedup is None or ratio >= self._limits.min_speedup
        bound_ms = self._limits.max_latency_ms
        return enough and (bound_ms is None or self._gate.latency_ms(self._teacher) / ratio <= bound_ms)

    def remembered(self, key: str, decide: Callable[[], Any]) -> Any:
        """What was decided before the run was ended; see `Journal.decision`."""
        return self._gate.remembered(key, decide)

    def refusal(self, loss: Loss) -> str:
        """Why a file that costs so much must not ship; empty if it may.

        A few samples of a small validation split are no reason, but a limit of the student is one in any case.
        """
        unit = self._scoring.metric.unit
        if self._left is not None and loss.points > self._left + ROUNDING:
            return (
                f"on validation, int8 is {loss.points:.2f} {unit} below float32, and "
                f"{self._left:.2f} are left of limits.max_drop."
            )
        if loss.points > self.limit + ROUNDING and loss.low > 0:
            return (
                f"on validation, int8 is {loss.points:.2f} {unit} below float32; quantize.max_drop is {self.limit:g}."
            )
        return ""

    def may_be_chance(self, loss: Loss) -> bool:
        """Whether a file that seems to cost too much may keep to `limits.max_drop`, which other samples will tell."""
        return self._left is not None and loss.low <= self.limit + ROUNDING

    def is_the_only_hope(self, path: Path, loss: Loss) -> bool:
        """Whether an int8 file that seems to cost too much may keep to all limits, and float32 is too slow to."""
        return self.may_be_chance(loss) and self.keeps_speed(path) and not self.keeps_speed(self._student)

    def _difference(self, before: Score, after: Score) -> Loss:
        points = self._scoring.metric.drop(before.value, after.value)
        interval = paired_interval(before, after, points)
        return Loss(points, points if interval is None else interval[0])

    def _scored(self, path: Path, exact: bool = False, settings: SessionSettings | None = None) -> Score:
        return verify(path, self._scoring, settings or self._settings, "validation", exact=exact)
