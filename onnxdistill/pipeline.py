"""From a recipe to a shipped student: the only file that knows the order of the stages.

    recipe ─► teacher ─► prune ─► factorize ─► distill ─► export ─► quantize ─► verify ─► bench ─► ship

Every stage that changes the network is followed by `export` and `verify`, so that each row of the report is
measured on an ONNX file. A stage that should make the student faster is kept only if it measurably does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tomli_w
from rich.console import Console
from torch import nn

from onnxdistill.device.bench import BenchResult, bench
from onnxdistill.device.feeds import check_memory
from onnxdistill.device.runtime import usable_provider
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import LimitsMissedError, NetworkError, cannot_write, explained
from onnxdistill.gate import Gate, describe, measurably_faster
from onnxdistill.graph.cost import count_macs, parameter_count
from onnxdistill.journal import Journal
from onnxdistill.logfile import LoggedProgress, check_log_place
from onnxdistill.networks import build_network
from onnxdistill.progress import ConsoleProgress, Progress, SilentProgress
from onnxdistill.recipe import Recipe, load_recipe
from onnxdistill.report import GroupCut, Report, TrainingLog
from onnxdistill.report.assemble import Step, assemble
from onnxdistill.report.page import render_page
from onnxdistill.report.table import limit_text, render_report
from onnxdistill.stages.distill import distill
from onnxdistill.stages.export import export
from onnxdistill.stages.factorize import factorize
from onnxdistill.stages.prune import prune
from onnxdistill.stages.quantize import quantize
from onnxdistill.stages.ship import RunFolder
from onnxdistill.stages.teacher import further_teachers, teacher
from onnxdistill.stages.verify import verify
from onnxdistill.student import save_student
from onnxdistill.tasks import TASKS, Task
from onnxdistill.tasks.base import Feeds
from onnxdistill.training import TrainingResult, TrainingStatus
from onnxdistill.training.loop import follow, leading

EXPORTED_BATCH = 3


def compress(
    recipe: Path | str,
    *,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    log_file: Path | str | None = None,
) -> Report:
    """Runs a recipe and ships the student into a run folder.

    Args:
        recipe: The recipe's TOML file.
        out: The run folder; `runs/NAME` by default. An earlier run there is replaced only by one that meets
            its limits; one that misses them goes to `OUT.missed`. If a run into this folder was ended on the way,
            its trainings go on from their last checkpoint.
        overrides: Items `table.key=value` that replace keys of the recipe.
        console: Shows progress and the closing table; None is silent.
        log_file: Gets a line of JSON for everything that happens; see `LoggedProgress`.

    Returns:
        The report, as `report.json` in the run folder holds it.

    Raises:
        UsageError: If the recipe, the data, the weights or the output folder cannot be used.
        LimitsMissedError: If the student misses a limit; the message names the measured numbers.
    """
    loaded = load_recipe(Path(recipe), overrides)
    target = Path(out) if out is not None else Path("runs") / loaded.name
    shown = SilentProgress() if console is None else ConsoleProgress(console)
    with ExitStack() as stack:
        progress: Progress = shown
        if log_file is not None:
            log = Path(log_file)
            check_log_place(log, (Path(recipe), Path(loaded.teacher.weights)), target)
            progress = stack.enter_context(LoggedProgress(shown, log, loaded.name))
        folder = stack.enter_context(RunFolder(target))
        scratch = stack.enter_context(_scratch())
        journal = stack.enter_context(Journal(target))
        with leading(), _told_how_to_go_on(console, journal), shown:
            report = _Run(loaded, scratch, journal, progress).whole(folder.work)
        if console is not None:
            console.print()
            console.print(render_report(report))
        shipped = folder.ship(missed=not report.shipped)
        if not report.shipped:
            missed = "; ".join(limit_text(check) for check in report.limits if check.met is False)
            raise LimitsMissedError(
                f"The student of {loaded.name} does not ship: {missed}.",
                f"What was made lies in {shipped}. Prune less, train longer, or change [limits].",
            )
    if console is not None:
        console.print(f"\n{shipped / 'student.onnx'}\n{shipped / 'report.html'}", highlight=False, soft_wrap=True)
    return report


def assist(recipe: Path | str, overrides: Sequence[str] = ()) -> None:
    """Takes part in the trainings of a `compress` that another process of the same `torchrun` leads.

    Args:
        recipe: As the leading process has it.
        overrides: Likewise.

    Raises:
        UsageError: As `compress` does.
    """
    loaded = load_recipe(Path(recipe), overrides)
    task: Task = TASKS[loaded.task](loaded)
    further = loaded.distill.teachers if loaded.distill is not None else []
    for name in {loaded.teacher.network, *(table.network for table in further)}:
        build_network(name, len(task.class_names), loaded.seed)  # classes of the user's own have to be known here, too
    follow(task)


@contextmanager
def _told_how_to_go_on(console: Console | None, journal: Journal) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if console is not None and journal.holds_something:
            console.print("Ended on the way. The same command goes on from here.")
        raise


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for the files on the way; a disk that is full is explained."""
    try:
        with tempfile.TemporaryDirectory(prefix="onnxdistill-") as folder:
            yield Path(folder)
    except BrokenPipeError:
        raise  # of the console, not of a file
    except OSError as error:
        raise explained(error, f"A file in {tempfile.gettempdir()}") from error


@dataclass(frozen=True)
class _Network:
    """A network on its way, and its ONNX file."""

    module: nn.Module
    path: Path


@dataclass
class _Run:
    """One compression; `whole` is the order of the stages."""

    recipe: Recipe
    scratch: Path
    journal: Journal
    progress: Progress
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    groups: list[GroupCut] = field(default_factory=list)
    trainings: list[TrainingLog] = field(default_factory=list)
    stage_started: float = 0.0

    def whole(self, folder: Path) -> Report:
        """Runs every stage and fills the run folder."""
        started = time.monotonic()
        # Refused now rather than after the training.
        usable_provider(self._settings().provider)
        self.task = self._load_task()
        batch = self.recipe.bench.batch
        check_memory(f"bench.batch = {batch}", batch * self.task.example_input(1).nbytes)
        self.gate = Gate(self.recipe, self.task, self.scratch, self.journal)
        original = self._teacher()
        student = self._prune(original)
        student = self._factorize(student)
        student = self._distill(student, original)
        self._quantize(student, original)
        timings = self._bench()
        self._save_module(student.module, folder)
        report = assemble(
            self.recipe,
            self.task,
            self.steps,
            timings,
            time.monotonic() - started,
            self.notes,
            self.groups,
            self.trainings,
        )
        self._write(folder, report)
        return report

    def _load_task(self) -> Task:
        self._begin("data", "reading and splitting")
        task: Task = TASKS[self.recipe.task](self.recipe)
        sizes = ", ".join(f"{split['images']:,} {name}" for name, split in task.describe_data().items())
        self.progress.end(sizes or "none: random inputs, latency only")
        return task

    def _teacher(self) -> _Network:
        table = self.recipe.teacher
        self._begin("teacher", f"building {table.network}")
        self.further = further_teachers(self.recipe, self.task)  # refused now rather than after a training
        result = teacher(self.recipe, self.task, self._on_training, self.journal.checkpoint("teacher"))
        self._log("teacher", result.training)
        fresh = "from scratch" if table.train is not None else "no weights"
        source = fresh if table.weights == "none" else Path(table.weights).name
        trained = "" if result.training is None else f", trained {len(result.training.history)} epochs"
        return self._finish("teacher", result.network, f"{table.network}, {source}{trained}")

    def _prune(self, student: _Network) -> _Network:
        if self.recipe.prune is None:
            return student
        self._begin("prune", "reading the channel groups")
        result = prune(student.module, self.task, self.recipe.prune)
        if not result.cuts and not result.blocks:
            self._note(*result.notes)  # they say which key leaves nothing to cut
            self.progress.end("left out: there is no channel to remove")
            return student
        macs = self._macs(student.module)
        removed = f", {1 - self._macs(result.network) / macs:.0%} of MACs removed" if macs else ""
        gone = f"without {', '.join(result.blocks)}, " if result.blocks else ""
        narrower = f"{len(result.cuts)} groups narrower" if result.cuts else "no group narrower"
        summary = f"{gone}{narrower}{removed}"
        kept = self._keep_if_faster("prune", student, result.network, summary)
        if kept is not student:
            self.groups.extend(GroupCut(**asdict(cut)) for cut in result.cuts)
            self._note(*result.notes)
        return kept

    def _factorize(self, student: _Network) -> _Network:
        if self.recipe.factorize is None:
            return student
        self._begin("factorize", "choosing ranks")
        result = factorize(student.module, self.task, self.recipe.factorize, self.recipe.seed, self.gate.layer_speedup)
        self._note(*result.notes)
        if result.left_out:
            self._note(f"factorize was left out: {result.left_out}.")
            self.progress.end(f"left out: {result.left_out}")
            return student
        return self._keep_if_faster("factorize", student, result.network, f"{len(result.layers)} layers in low rank")

    def _distill(self, student: _Network, original: _Network) -> _Network:
        if self.recipe.distill is None:
            return student
        if not self.task.measurable:
            self._note("distill was left out: without data there is nothing to learn.")
            return student
        self._begin("distill", "starting")
        result = distill(
            student.module,
            [original.module, *self.further],
            self.task,
            self.recipe.distill,
            self.recipe.seed,
            self._on_training,
            self.journal.checkpoint("distill"),
        )
        self._log("distill", result)
        return self._finish(
            "distill",
            result.network,
            f"{len(result.history)} epochs, kept the weights after {result.best_epoch}",
        )

    def _quantize(self, student: _Network, original: _Network) -> None:
        table = self.recipe.quantize
        if table is None:
            return
        self._begin("quantize", "calibrating")
        path = self.scratch / "quantize.onnx"
        result = quantize(student.path, path, self._calibration(table.calibration_batch), table)
        self.progress.update("measuring int8 against float32")
        refusal = self._refusal_of_int8(student, original, path)
        if refusal:
            self._note(f"quantize was measured and not used: {refusal}")
        bits = 7 if result.reduced_range else 8
        summary = f"static QDQ, {result.activations} activations, {bits}-bit weights"
        self._record("quantize", student.module, path, "int8", summary, applied=not refusal)

    def _refusal_of_int8(self, student: _Network, original: _Network, path: Path) -> str:
        """Why int8 must not ship; empty if it may. Only speed and validation accuracy decide."""
        ratio = self.gate.speedup(student.path, path)
        if not measurably_faster(ratio):
            return f"int8 is {describe(ratio)} as float32."
        limit = self.recipe.limits.max_drop
        if limit is None or not self.task.measurable:
            return ""
        teacher_score, float_score, int8_score = (
            verify(file, self.task, self._settings(), "validation").value
            for file in (original.path, student.path, path)
        )
        float_drop = self.task.metric.drop(teacher_score, float_score)
        int8_drop = self.task.metric.drop(teacher_score, int8_score)
        if float_drop <= limit < int8_drop:
            return f"on validation, int8 is {int8_drop:.2f} points below the teacher, float32 {float_drop:.2f}."
        return ""

    def _bench(self) -> BenchResult:
        table = self.recipe.bench
        self._begin("bench", "timing all stages in turns")
        result = bench(
            {step.stage: step.path for step in self.steps},
            threads=table.threads,
            batch=table.batch,
            provider=table.provider,
            runs=table.runs,
            seed=self.recipe.seed,
            on_progress=lambda phase, done, total: self.progress.update(f"{phase}, all stages in turns", done / total),
        )
        threads = "1 thread" if table.threads == 1 else f"{table.threads} threads"
        self.progress.end(f"{table.runs} runs each, in turns, {threads}, batch {table.batch}, {table.provider}")
        return result

    def _save_module(self, student: nn.Module, folder: Path) -> None:
        """The student in PyTorch, beside the ONNX file that ships; a network that cannot be rebuilt ships without."""
        class_count = len(self.task.class_names)
        try:
            save_student(
                student, self.recipe.teacher.network, class_count, folder / "student.pt", self.task.example_input(2)
            )
        except NetworkError as error:
            self._note(f"student.pt was left out: {error.what}")
        except OSError as error:
            raise cannot_write(f"The run folder in {folder.parent}", error) from error

    def _write(self, folder: Path, report: Report) -> None:
        student = [step for step in self.steps if step.applied][-1]
        try:
            shutil.copyfile(self.steps[0].path, folder / "teacher.onnx")
            shutil.copyfile(student.path, folder / "student.onnx")
            (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
            (folder / "report.html").write_text(render_page(report), encoding="utf-8")
            (folder / "recipe.toml").write_text(tomli_w.dumps(report.recipe), encoding="utf-8")
        except OSError as error:
            raise cannot_write(f"The run folder in {folder.parent}", error) from error

    def _keep_if_faster(self, stage: str, before: _Network, network: nn.Module, summary: str) -> _Network:
        """Goes on with `network` only if it is measurably faster in the precision that will be deployed."""
        after = self._export(stage, network)
        self.progress.update("measuring whether it is faster")
        ratio = self.gate.deployed_speedup(before.path, after.path)
        if measurably_faster(ratio):
            self._record(stage, network, after.path, "float32", summary)
            return after
        self._note(f"{stage} was measured and not used: {describe(ratio)} as before it.")
        self._record(stage, network, after.path, "float32", f"{summary}; not faster, not used", applied=False)
        return before

    def _finish(self, stage: str, network: nn.Module, summary: str) -> _Network:
        exported = self._export(stage, network)
        self._record(stage, network, exported.path, "float32", summary)
        return exported

    def _export(self, stage: str, network: nn.Module) -> _Network:
        self.progress.update("exporting to ONNX")
        path = self.scratch / f"{stage}.onnx"
        export(
            network,
            self.task.example_input(EXPORTED_BATCH),
            path,
            self.recipe.export,
            input_name=self.task.input_name,
            output_name=self.task.output_name,
            metadata=self.task.metadata(),
        )
        return _Network(network, path)

    def _record(
        self,
        stage: str,
        network: nn.Module,
        path: Path,
        precision: Literal["float32", "int8"],
        summary: str,
        applied: bool = True,
    ) -> None:
        """Verifies a stage's ONNX file on the test split and notes its row of the report."""
        score = None
        if self.task.measurable:
            score = verify(path, self.task, self._settings(), "test", self._on_verify)
        self.steps.append(
            Step(
                stage=stage,
                path=path,
                precision=precision,
                parameters=parameter_count(network),
                macs=self._macs(network),
                score=score,
                seconds=time.monotonic() - self.stage_started,
                applied=applied,
                summary=summary,
            )
        )
        self.progress.end(summary, "" if score is None else f"{score.value:.2f} {self.task.metric.unit}")

    def _calibration(self, batch_size: int) -> Iterator[Feeds]:
        for batch in self.task.calibration_batches(batch_size):
            yield {self.task.input_name: batch.inputs.numpy()}

    def _settings(self) -> SessionSettings:
        return SessionSettings(threads=self.recipe.bench.threads, provider=self.recipe.bench.provider)

    def _macs(self, network: nn.Module) -> int:
        return count_macs(network, self.task.example_input(1))

    def _log(self, stage: str, training: TrainingResult | None) -> None:
        if training is not None:
            self._note(*(f"{stage}: {note}." for note in training.notes))
            epochs = [asdict(record) for record in training.history]
            self.trainings.append(TrainingLog(stage, training.best_epoch, training.start_score, epochs))

    def _note(self, *texts: str) -> None:
        """Notes of the report."""
        self.notes.extend(texts)
        for text in texts:
            self.progress.noted(text)

    def _begin(self, stage: str, text: str) -> None:
        self.stage_started = time.monotonic()
        self.progress.begin(stage, text)

    def _on_training(self, status: TrainingStatus) -> None:
        self.progress.training(status, self.task.metric.unit)

    def _on_verify(self, done: int, total: int) -> None:
        self.progress.update("verifying on test", done / total)
