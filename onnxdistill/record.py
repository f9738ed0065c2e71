"""What becomes of a stage's network: exported, verified, kept or not, and noted as a row of the report."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from onnxdistill.device.result import BenchResult
from onnxdistill.device.session import SessionSettings
from onnxdistill.gate import Gate, describe, measurably_faster
from onnxdistill.graph.cost import count_macs, parameter_count
from onnxdistill.progress import Progress
from onnxdistill.recipe import Recipe
from onnxdistill.report import GroupCut, Report, TrainingLog
from onnxdistill.report.assemble import Step, assemble
from onnxdistill.stages.export import export
from onnxdistill.stages.verify import verify
from onnxdistill.tasks import Task
from onnxdistill.training import TrainingResult, TrainingStatus

EXPORTED_BATCH = 3


@dataclass(frozen=True)
class Candidate:
    """A network on its way, and its ONNX file."""

    module: nn.Module
    path: Path


class Record:
    """The rows and the notes of one run's report, as its stages come to them.

    Args:
        recipe: The run's.
        task: Gives examples to export with, and scores.
        settings: How files are run to be verified.
        gate: Measures whether something is faster.
        scratch: Folder for the ONNX files.
        progress: Shows all of it.

    Attributes:
        steps: What will be the rows; the first one is the teacher.
        notes: Sentences for the user.
        groups: Channel groups that were cut.
        trainings: Logs.
    """

    def __init__(
        self, recipe: Recipe, task: Task, settings: SessionSettings, gate: Gate, scratch: Path, progress: Progress
    ) -> None:
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.groups: list[GroupCut] = []
        self.trainings: list[TrainingLog] = []
        self._recipe = recipe
        self._task = task
        self._settings = settings
        self._gate = gate
        self._scratch = scratch
        self._progress = progress
        self._stage_started = 0.0

    def begin(self, stage: str, text: str) -> None:
        """A stage starts, and its time is counted from here on."""
        self._stage_started = time.monotonic()
        self._progress.begin(stage, text)

    def note(self, *texts: str) -> None:
        """Notes of the report."""
        self.notes.extend(texts)
        for text in texts:
            self._progress.noted(text)

    def log(self, stage: str, training: TrainingResult | None) -> None:
        """The log and the notes of a stage's training, if there was one."""
        if training is not None:
            self.note(*(f"{stage}: {note}." for note in training.notes))
            epochs = [asdict(record) for record in training.history]
            self.trainings.append(TrainingLog(stage, training.best_epoch, training.start_score, epochs))

    def show_training(self, status: TrainingStatus) -> None:
        """Where the stage's training stands."""
        self._progress.training(status, self._task.metric.unit)

    def macs(self, network: nn.Module) -> int:
        """Multiply-adds of a network, for one sample."""
        return count_macs(network, self._task.example_input(1))

    def finish(self, stage: str, network: nn.Module, summary: str) -> Candidate:
        """Ends a stage whose network goes on in any case."""
        exported = self._export(stage, network)
        self.add(stage, network, exported.path, "float32", summary)
        return exported

    def finish_if_faster(self, stage: str, before: Candidate, network: nn.Module, summary: str) -> Candidate:
        """Ends a stage whose network goes on only if it is measurably faster in the precision to be deployed.

        Returns:
            The network's, or else `before`.
        """
        after = self._export(stage, network)
        self._progress.update("measuring whether it is faster")
        ratio = self._gate.deployed_speedup(before.path, after.path)
        if measurably_faster(ratio):
            self.add(stage, network, after.path, "float32", summary)
            return after
        self.note(f"{stage} was measured and not used: {describe(ratio)} as before it.")
        self.add(stage, network, after.path, "float32", f"{summary}; not faster, not used", applied=False)
        return before

    def refusal_of_int8(self, original: Candidate, student: Candidate, path: Path) -> str:
        """Why the student's int8 file must not ship; empty if it may. Only speed and validation accuracy decide."""
        ratio = self._gate.speedup(student.path, path)
        if not measurably_faster(ratio):
            return f"int8 is {describe(ratio)} as float32."
        limit = self._recipe.limits.max_drop
        if limit is None or not self._task.measurable:
            return ""
        teacher_score, float_score, int8_score = (
            verify(file, self._task, self._settings, "validation").value for file in (original.path, student.path, path)
        )
        float_drop = self._task.metric.drop(teacher_score, float_score)
        int8_drop = self._task.metric.drop(teacher_score, int8_score)
        if float_drop <= limit < int8_drop:
            return f"on validation, int8 is {int8_drop:.2f} points below the teacher, float32 {float_drop:.2f}."
        return ""

    def add(
        self,
        stage: str,
        network: nn.Module,
        path: Path,
        precision: Literal["float32", "int8"],
        summary: str,
        applied: bool = True,
    ) -> None:
        """Verifies a stage's ONNX file on the test split, notes its row of the report, and ends the stage."""
        score = None
        if self._task.measurable:
            score = verify(path, self._task, self._settings, "test", self._show_verifying)
        self.steps.append(
            Step(
                stage=stage,
                path=path,
                precision=precision,
                parameters=parameter_count(network),
                macs=self.macs(network),
                score=score,
                seconds=time.monotonic() - self._stage_started,
                applied=applied,
                summary=summary,
            )
        )
        self._progress.end(summary, "" if score is None else f"{score.value:.2f} {self._task.metric.unit}")

    def report(self, timings: BenchResult, seconds: float) -> Report:
        """All of it, with the latencies of every step, and what the run has taken."""
        return assemble(self._recipe, self._task, self.steps, timings, seconds, self.notes, self.groups, self.trainings)

    def _export(self, stage: str, network: nn.Module) -> Candidate:
        self._progress.update("exporting to ONNX")
        path = self._scratch / f"{stage}.onnx"
        export(
            network,
            self._task.example_input(EXPORTED_BATCH),
            path,
            self._recipe.export,
            input_name=self._task.input_name,
            output_name=self._task.output_name,
            metadata=self._task.metadata(),
        )
        return Candidate(network, path)

    def _show_verifying(self, done: int, total: int) -> None:
        self._progress.update("verifying on test", done / total)
