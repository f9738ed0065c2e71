"""What becomes of a stage's network: exported, verified, kept or not, and noted as a row of the report."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from onnxdistill.device.host import read_host
from onnxdistill.device.places import Place
from onnxdistill.device.result import BenchResult
from onnxdistill.device.session import SessionSettings
from onnxdistill.gate import Gate, describe, measurably_faster
from onnxdistill.graph.cost import count_macs, parameter_count
from onnxdistill.judge import Int8Judge
from onnxdistill.progress import Progress
from onnxdistill.quantization.ladder import Finetune
from onnxdistill.quantization.scheme import saturates
from onnxdistill.quantization.targets import write_for
from onnxdistill.quantization.workshop import Calibration, Workshop
from onnxdistill.recipe import OnnxRecipe, QuantizeTable, Recipe
from onnxdistill.report import GroupCut, PlanLog, QuantizationLog, Report, RungRow, SchemeRow, TrainingLog
from onnxdistill.report.assemble import Step, TargetFile, assemble
from onnxdistill.sources import Sources
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import quantize_measured
from onnxdistill.stages.verify import verify
from onnxdistill.tasks import Scoring, Task
from onnxdistill.tasks.base import Feeds
from onnxdistill.training import TrainingResult, TrainingStatus

EXPORTED_BATCH = 3


@dataclass(frozen=True)
class Candidate:
    """A network on its way, and its ONNX file."""

    module: nn.Module
    path: Path


class FileRecord:
    """The rows and the notes of one run's report, as ONNX files come to them.

    Args:
        recipe: The run's.
        scoring: Scores files.
        settings: How files are run to be verified.
        place: Where they are timed.
        progress: Shows all of it.

    Attributes:
        steps: What will be the rows; the first one is the teacher.
        notes: Sentences for the user.
        groups: Channel groups that were cut.
        trainings: Logs.
        quantization: What was tried for int8.
        targets: Files for other kinds of machines.
        plan: How a latency budget was spent.
        sources: What the networks are built from.
    """

    def __init__(
        self,
        recipe: Recipe | OnnxRecipe,
        scoring: Scoring,
        settings: SessionSettings,
        place: Place,
        progress: Progress,
    ) -> None:
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.groups: list[GroupCut] = []
        self.trainings: list[TrainingLog] = []
        self.quantization: QuantizationLog | None = None
        self.targets: list[TargetFile] = []
        self.plan: PlanLog | None = None
        self.sources: Sources = {}
        self._recipe = recipe
        self._scoring = scoring
        self._settings = settings
        self._place = place
        self._progress = progress
        self._stage_started = self._trained_s = 0.0

    def begin(self, stage: str, text: str) -> None:
        """A stage starts, and its time is counted from here on."""
        self._stage_started, self._trained_s = time.monotonic(), 0.0
        self._progress.begin(stage, text)

    def note(self, *texts: str) -> None:
        """Notes of the report."""
        self.notes.extend(texts)
        for text in texts:
            self._progress.noted(text)

    def quantize(
        self,
        table: QuantizeTable,
        source: Path,
        scratch: Path,
        calibration: Calibration,
        judge: Int8Judge,
        cost: tuple[int, int | None],
        finetune: Finetune | None = None,
    ) -> None:
        """The stage `quantize`, which has begun, and the files for other machines.

        Args:
            table: The recipe's `[quantize]`.
            source: The float file.
            scratch: Folder for the files.
            calibration: Gives the samples, from the beginning with every call.
            judge: Decides between int8 files.
            cost: Parameters and multiply-adds.
            finetune: Trains an int8 file; None where that cannot be.
        """
        path = scratch / "quantize.onnx"
        workshop = Workshop(source, calibration, self._place.host)
        result = quantize_measured(
            workshop,
            path,
            table,
            judge,
            finetune=finetune,
            on_progress=self._progress.update,
            remembered=judge.remembered,
            keeps_speed=judge.keeps_speed,
        )
        schemes = [SchemeRow(one.scheme, one.speedup.value, *one.speedup.interval) for one in result.variants]
        rungs = [
            RungRow(one.name, None if one.loss is None else one.loss.points, one.kept, one.seconds, one.note)
            for one in result.rungs
        ]
        self.quantization = QuantizationLog(judge.limit, schemes, rungs)
        if unbounded := workshop.unbounded:
            self.note(
                f"quantize left what is around {unbounded[0]!r}"
                + (f" and {len(unbounded) - 1} further tensors" if len(unbounded) > 1 else "")
                + " in float: on calibration samples, a value was infinite there, as in masks of attention."
            )
        refusal = result.refusal
        if refusal and result.loss is not None and judge.is_the_only_hope(path, result.loss):
            self.note(f"quantize: {refusal} That may be chance, and float32 is too slow for the limits.")
            refusal = ""
        if refusal:
            self.note(f"quantize was measured and not used: {refusal}")
        self.add_file("quantize", path, "int8", *cost, str(result.form), applied=not refusal)
        for target in table.targets:
            self.begin(target, "a file for other machines")
            path = scratch / f"{target}.onnx"
            # Integers overflow here that do not overflow there.
            exact = target not in ("cuda", "x86") and saturates(read_host())
            self._add_target(target, path, write_for(target, workshop, result.form, path), exact)
            if judge.measurable and (refusal := judge.refusal(judge.loss_elsewhere(path, exact=exact))):
                self.note(f"student-{target}.onnx loses too much: {refusal}")

    def add_file(
        self,
        stage: str,
        path: Path,
        precision: Literal["float32", "int8"],
        parameters: int,
        macs: int | None,
        summary: str,
        applied: bool = True,
    ) -> None:
        """Verifies a stage's ONNX file on the test split, notes its row of the report, and ends the stage."""
        score = None
        if self._scoring.measurable:
            score = verify(path, self._scoring, self._settings, "test", self._show_verifying)
        self.steps.append(
            Step(
                stage=stage,
                path=path,
                precision=precision,
                parameters=parameters,
                macs=macs,
                score=score,
                # A training may have been done before the run was ended, for the most part.
                seconds=max(time.monotonic() - self._stage_started, self._trained_s),
                applied=applied,
                summary=summary,
            )
        )
        self._progress.end(summary, "" if score is None else f"{score.value:.2f} {self._scoring.metric.unit}")

    def _add_target(self, target: str, path: Path, summary: str, exact: bool) -> None:
        """Verifies a file for another kind of machine on the test split, and notes it; see `verify` for `exact`."""
        score = None
        if self._scoring.measurable:
            cpu = SessionSettings(threads=self._settings.threads)
            score = verify(path, self._scoring, cpu, "test", self._show_verifying, exact=exact)
        self.targets.append(TargetFile(target, path, summary, score))
        self._progress.end(summary, "" if score is None else f"{score.value:.2f} {self._scoring.metric.unit}")

    def bench(self, inputs: Feeds | None = None) -> BenchResult:
        """Times the files of all stages in turns.

        Args:
            inputs: Arrays by input name, of which the first items make a batch; random ones if left out.
        """
        table = self._recipe.bench
        self.begin("bench", "timing all stages in turns")
        if table.remote is not None:
            here = "; accuracies were measured on this one" if self._scoring.measurable else ""
            self.note(f"Latencies are of another machine, {self._place.host.cpu}{here}.")
        result = self._place.bench(
            {step.stage: step.path for step in self.steps},
            threads=table.threads,
            batch=table.batch,
            provider=table.provider,
            seconds=table.seconds * len(self.steps),
            inputs=inputs,
            seed=self._recipe.seed,
            on_progress=lambda phase, done, total: self._progress.update(f"{phase}, all stages in turns", done / total),
        )
        threads = "1 thread" if table.threads == 1 else f"{table.threads} threads"
        calls = result.cases[0].latency_ms.count
        self._progress.end(f"{calls:,} calls each, in turns, {threads}, batch {table.batch}, {table.provider}")
        return result

    def report(self, timings: BenchResult, seconds: float) -> Report:
        """All of it, with the latencies of every step, and what the run has taken."""
        return assemble(
            self._recipe,
            self._scoring,
            self.steps,
            timings,
            max(seconds, sum(step.seconds for step in self.steps)),
            self.notes,
            self.groups,
            self.trainings,
            self.quantization,
            self.targets,
            self.plan,
            self.sources,
        )

    def _show_verifying(self, done: int, total: int) -> None:
        self._progress.update("verifying on test", done / total)


class Record(FileRecord):
    """The same of the networks of a recipe, which are exported to files.

    Args:
        recipe: The run's.
        task: Gives examples to export with, and scores.
        settings: How files are run to be verified.
        place: Where they are timed.
        gate: Measures whether something is faster.
        scratch: Folder for the ONNX files.
        progress: Shows all of it.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        settings: SessionSettings,
        place: Place,
        gate: Gate,
        scratch: Path,
        progress: Progress,
    ) -> None:
        super().__init__(recipe, task, settings, place, progress)
        self._export_table = recipe.export
        self._task = task
        self._gate = gate
        self._scratch = scratch

    def log(self, stage: str, training: TrainingResult | None) -> None:
        """The log and the notes of a stage's training, if there was one."""
        if training is not None:
            self.note(*(f"{stage}: {note}." for note in training.notes))
            epochs = [asdict(record) for record in training.history]
            self._trained_s += sum(record.seconds for record in training.history)
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

    def add(
        self,
        stage: str,
        network: nn.Module,
        path: Path,
        precision: Literal["float32", "int8"],
        summary: str,
        applied: bool = True,
    ) -> None:
        """Ends a stage as `add_file` does, with what its network costs."""
        self.add_file(stage, path, precision, parameter_count(network), self.macs(network), summary, applied)

    def _export(self, stage: str, network: nn.Module) -> Candidate:
        self._progress.update("exporting to ONNX")
        path = self._scratch / f"{stage}.onnx"
        export(
            network,
            self._task.example_input(EXPORTED_BATCH),
            path,
            self._export_table,
            input_name=self._task.input_name,
            output_name=self._task.output_name,
            metadata=self._task.metadata(),
        )
        return Candidate(network, path)
