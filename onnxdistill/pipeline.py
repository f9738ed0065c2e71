"""From a recipe to a shipped student: the only file that knows the order of the stages.

    recipe ─► teacher ─► plan or prune ─► factorize ─► distill ─► export ─► quantize ─► verify ─► bench ─► ship

Every stage that changes the network is followed by `export` and `verify`, so that each row of the report is
measured on an ONNX file. A stage that should make the student faster is kept only if it measurably does; `plan`
measures after each of its cuts instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path

from rich.console import Console

from onnxdistill.artifacts import SAMPLES, write_files, write_module, write_teacher
from onnxdistill.device.feeds import check_memory
from onnxdistill.errors import LimitsMissedError, NetworkError, ResultError, UsageError
from onnxdistill.finetuning import Finetuning
from onnxdistill.gate import Gate, place_of, settings_of, verifying_settings
from onnxdistill.graph.cost import parameter_count
from onnxdistill.journal import Journal
from onnxdistill.judge import Int8Judge
from onnxdistill.networks import build_network, import_files
from onnxdistill.overrides import keys_given
from onnxdistill.progress import Progress
from onnxdistill.recipe import Recipe, load_recipe
from onnxdistill.recipe.weights import NO_WEIGHTS, OWN_WEIGHTS
from onnxdistill.record import Candidate, Record
from onnxdistill.report import CutRow, DecisionRow, GroupCut, LayerRow, PlanLog, Report
from onnxdistill.shell import opened
from onnxdistill.sources import network_sources
from onnxdistill.stages.factorize import factorize
from onnxdistill.stages.plan import PlanResult, plan
from onnxdistill.stages.prune import prune
from onnxdistill.stages.ship import RunFolder
from onnxdistill.stages.teacher import (
    further_teachers,
    notes_on_images,
    notes_on_names,
    notes_on_others,
    notes_on_score,
    teacher,
)
from onnxdistill.tasks import TASKS, Task
from onnxdistill.tasks.base import Feeds
from onnxdistill.training import follow, leading
from onnxdistill.training.hardware import notes_on_devices

# Of what is asked for: the last measurement is another one than that which the plan was made by.
PLAN_MARGIN = 0.97
# By so much int8 may turn out faster in the end than with the usual scheme, which plans are timed with.
UNREACHABLE = 1.25


def compress(
    recipe: Path | str,
    *,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    log_file: Path | str | None = None,
    tensorboard: Path | str | None = None,
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
        tensorboard: Folder that gets the trainings' curves; see `EventFilesProgress`.

    Returns:
        The report, as `report.json` in the run folder holds it.

    Raises:
        UsageError: If the recipe, the data, the weights or the output folder cannot be used.
        LimitsMissedError: If the student misses a limit; the message names the measured numbers.
    """
    loaded = load_recipe(Path(recipe), overrides)
    if loaded.latency_only and any("limits.max_drop" in keys_given(item) for item in overrides):
        raise UsageError(
            "limits.max_drop was asked for, and no accuracy can be measured: the teacher has neither weights nor "
            "training.",
            "Give teacher.weights, which is 'own' for a function that loads them itself; or a [teacher.train].",
        )
    target = Path(out) if out is not None else Path("runs") / loaded.name
    log = None if log_file is None else Path(log_file)
    events = None if tensorboard is None else Path(tensorboard)
    keys = "distill.micro_batch, teacher.train.micro_batch, quantize.calibration_batch or bench.batch"
    sources = (Path(recipe), Path(loaded.teacher.weights))
    with opened(loaded.name, sources, target, console, log, events, memory_keys=keys) as shell:
        # In this order: after an error that only this process meets, such as of its memory, its team is not waited for.
        with shell.running(), leading():
            keeps = _reads_replaced_weights(loaded, shell.folder)
            run = _Run(loaded, shell.scratch, shell.journal, shell.progress, keeps_weights=keeps)
            report = run.whole(shell.folder.work)
        shell.deliver(report, "Ask for less, train longer, or change [limits].")
    return report


def _reads_replaced_weights(recipe: Recipe, folder: RunFolder) -> bool:
    """Whether the teacher's weights are those of a run that this one may replace, and so have to be written again.

    Raises:
        UsageError: If anything else is that the run learns from, and that would go with the folder.
    """
    read = {f"{name}.weights": table.weights for name, table in recipe.further_teachers.items()}
    # What a function reads is not known, and may be just that.
    is_own = recipe.teacher.weights == OWN_WEIGHTS
    keeps = recipe.teacher.train is None and (is_own or folder.holds(Path(recipe.teacher.weights), "teacher.pt"))
    if not keeps:
        read["teacher.weights"] = recipe.teacher.weights
    for key, path in read.items():
        folder.check_reading(key, Path(path))
    return keeps


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
    # Classes of the user's own have to be known here, too. If the leader has them, their lack is told by this process.
    lacking: NetworkError | None = None
    try:
        import_files(loaded.network_names)
        for name in loaded.network_names:
            build_network(name, len(task.class_names), loaded.seed)
    except NetworkError as error:
        lacking = error
    follow(task, lacking)


@dataclass
class _Run:
    """One compression; `whole` is the order of the stages."""

    recipe: Recipe
    scratch: Path
    journal: Journal
    progress: Progress
    keeps_weights: bool = False

    def whole(self, folder: Path) -> Report:
        """Runs every stage and fills the run folder."""
        started = time.monotonic()
        # Refused now rather than after the training.
        table = self.recipe.bench
        self.place = place_of(table)
        self.settings = verifying_settings(table)
        self.task = self._load_task()
        check_memory(f"bench.batch = {table.batch}", table.batch * self.task.example_input(1).nbytes)
        self.gate = Gate(self.recipe, self.place, self.task, self.scratch, self.journal)
        self.record = Record(self.recipe, self.task, self.settings, self.place, self.gate, self.scratch, self.progress)
        self.record.note(*self.journal.notes, *self.task.data_notes())
        if self.task.measurable:
            trainings = [one for one in (self.recipe.teacher.train, self.recipe.distill) if one is not None]
            self.record.note(*notes_on_devices(trainings))
        try:
            original = self._teacher()
        except ResultError as error:
            error.of_teacher = True
            raise
        student = self._plan(original)
        student = self._prune(student)
        student = self._factorize(student)
        student = self._distill(student)
        self._quantize(student, original)
        timings = self.record.bench()
        self.record.note(*write_module(student.module, self.recipe.teacher.network, self.task, folder))
        if self.recipe.teacher.train is not None or self.keeps_weights:
            write_teacher(original.module, folder)
        report = self.record.report(timings, time.monotonic() - started)
        samples = {self.task.input_name: self.task.example_input(SAMPLES).numpy()}
        write_files(samples, self.record.steps, self.record.targets, report, folder)
        return report

    def _load_task(self) -> Task:
        self.progress.begin("data", "reading and splitting")
        task: Task = TASKS[self.recipe.task](self.recipe)
        sizes = ", ".join(f"{split['images']:,} {name}" for name, split in task.describe_data().items())
        self.progress.end(sizes or "none: random inputs, latency only")
        return task

    def _teacher(self) -> Candidate:
        table = self.recipe.teacher
        self.record.begin("teacher", f"building {table.network}")
        with suppress(NetworkError):  # which is told below, by the key that names it
            import_files(self.recipe.network_names)
        self.record.sources = network_sources(self.recipe, len(self.task.class_names))
        further = self.recipe.distill.teachers if self.recipe.distill is not None else []
        # Refused now rather than after a training.
        further_ones = further_teachers(further, "distill.teachers", self.task, self.recipe.seed, self.recipe.distill)
        result = teacher(self.recipe, self.task, self.record.show_training, self.journal.checkpoint("teacher"))
        self.record.log("teacher", result.training)
        self.record.note(*result.notes)
        fresh = "from scratch" if table.train is not None else "no weights"
        source = fresh if table.weights == NO_WEIGHTS else Path(table.weights).name
        if table.weights == OWN_WEIGHTS:
            source = "its own weights"
        trained = "" if result.training is None else f", trained {len(result.training.history)} epochs"
        teachers = [result.network, *further_ones]
        self.finetuning = Finetuning(self.recipe, self.task, teachers, self.record, self.journal)
        finished = self.record.finish("teacher", result.network, f"{table.network}, {source}{trained}")
        self.record.note(*notes_on_images(self.recipe), *notes_on_names(result.network))
        if (score := self.record.steps[-1].score) is not None:
            self.record.note(*notes_on_score("teacher", score, self.task))
        self.record.note(*notes_on_others("distill.teachers", further_ones, self.task, result.network))
        return finished

    @property
    def _followed(self) -> list[str]:
        """Layers of the student that are compared with the teacher's, and so have to be there."""
        features = None if self.recipe.distill is None else self.recipe.distill.features
        return [] if features is None else features.layers

    def _plan(self, original: Candidate) -> Candidate:
        table = self.recipe.plan
        if table is None:
            return original
        self.record.begin("plan", "timing the teacher")
        teacher_ms = self.gate.latency_ms(original.path)
        # What follows a plan may make up for what its own budget leaves of limits.
        limits_ms = self._limits_ms(teacher_ms) if self.recipe.factorize is None else (inf, inf)
        budget_ms = PLAN_MARGIN * min(table.budget_ms(teacher_ms), *limits_ms)
        result = plan(
            original.module,
            self.task,
            table,
            budget_ms,
            partial(self.gate.deployed, reference=original.path),
            self.place,
            settings_of(self.recipe.bench),
            self.recipe.bench.batch,
            keep=self._followed,
            tune=self.finetuning.after_cut if table.epochs else None,
            remember=self.journal.decision,
            on_progress=self.progress.update,
        )
        self.record.note(*result.notes)
        if table.latency_ms is not None or limits_ms[1] < inf:  # or else the teacher's time does not matter
            for doubt in dict.fromkeys(self.gate.doubts):
                self.record.note(f"plan: the teacher's time, which all others hang on, is to doubt. {doubt}")
        if not result.fits:
            self._refuse_unreachable(teacher_ms, result)
        if not result.cuts:
            self.progress.end(f"left out: {'the network is as fast as asked' if result.fits else 'nothing can be cut'}")
            return original
        last = result.cuts[-1]
        done = [
            f"{len(made)} {one if len(made) == 1 else one + 's'} {what}"
            for made, one, what in (
                (result.blocks, "block", "left out"),
                (result.widths, "group", "narrower"),
                (result.pairs, "layer", "in low rank"),
            )
            if made
        ]
        summary = ", ".join([*done, f"{last.measured_ms:.3g} ms as deployed"])
        self.record.groups.extend(GroupCut(**asdict(width)) for width in result.widths)
        self.record.plan = PlanLog(
            budget_ms,
            [CutRow(**asdict(cut)) for cut in result.cuts],
            [DecisionRow(**asdict(decision)) for decision in result.decisions],
            [LayerRow(**asdict(layer)) for layer in result.layers],
        )
        return self.record.finish("plan", result.network, summary)

    def _limits_ms(self, teacher_ms: float) -> tuple[float, float]:
        """What the student may take by the limits on its speed-up and on its latency; forever, without them."""
        limits = self.recipe.limits
        by_ratio = inf if limits.min_speedup is None else teacher_ms / limits.min_speedup
        return by_ratio, inf if limits.max_latency_ms is None else limits.max_latency_ms

    def _refuse_unreachable(self, teacher_ms: float, result: PlanResult) -> None:
        """Ends a run that is sure to miss its limits before hours of training."""
        limits, reached_ms = self.recipe.limits, result.latency_ms
        missed = ""
        if limits.min_speedup is not None and teacher_ms / reached_ms * UNREACHABLE < limits.min_speedup:
            missed = f"min_speedup = {limits.min_speedup:g}: the plan reached {teacher_ms / reached_ms:.2f} ×"
        elif limits.max_latency_ms is not None and reached_ms > UNREACHABLE * limits.max_latency_ms:
            missed = f"max_latency_ms = {limits.max_latency_ms:g}: the plan reached {reached_ms:.3g} ms"
        if missed:
            raise LimitsMissedError(
                f"{missed}. {' '.join(result.notes)}",
                "Ask for less, or begin with a smaller teacher.",
            )

    def _prune(self, student: Candidate) -> Candidate:
        if self.recipe.prune is None:
            return student
        self.record.begin("prune", "reading the channel groups")
        result = prune(student.module, self.task, self.recipe.prune, self._followed)
        if not result.cuts and not result.blocks:
            self.record.note(*result.notes)  # they say which key leaves nothing to cut
            self.progress.end("left out: there is no channel to remove")
            return student
        macs = self.record.macs(student.module)
        removed = f", {1 - self.record.macs(result.network) / macs:.0%} of MACs removed" if macs else ""
        gone = f"without {', '.join(result.blocks)}, " if result.blocks else ""
        narrower = f"{len(result.cuts)} groups narrower" if result.cuts else "no group narrower"
        summary = f"{gone}{narrower}{removed}"
        kept = self.record.finish_if_faster("prune", student, result.network, summary)
        if kept is not student:
            self.record.groups.extend(GroupCut(**asdict(cut)) for cut in result.cuts)
            self.record.note(*result.notes)
        return kept

    def _factorize(self, student: Candidate) -> Candidate:
        if self.recipe.factorize is None:
            return student
        self.record.begin("factorize", "choosing ranks")
        result = factorize(student.module, self.task, self.recipe.factorize, self.recipe.seed, self.gate.layer_speedup)
        self.record.note(*result.notes)
        if result.left_out:
            self.record.note(f"factorize was left out: {result.left_out}.")
            self.progress.end(f"left out: {result.left_out}")
            return student
        summary = f"{len(result.layers)} layers in low rank"
        return self.record.finish_if_faster("factorize", student, result.network, summary)

    def _distill(self, student: Candidate) -> Candidate:
        if self.recipe.distill is None:
            return student
        if not self.task.measurable:
            self.record.note("distill was left out: without data there is nothing to learn.")
            return student
        self.record.begin("distill", "starting")
        result = self.finetuning.whole(student.module, self.recipe.distill)
        return self.record.finish(
            "distill",
            result.network,
            f"{len(result.history)} epochs, kept the weights after {result.best_epoch}",
        )

    def _quantize(self, student: Candidate, original: Candidate) -> None:
        table = self.recipe.quantize
        if table is None:
            return
        self.record.begin("quantize", "scoring float32")
        judge = Int8Judge(self.recipe, self.task, self.settings, self.gate, original.path, student.path)
        cost = (parameter_count(student.module), self.record.macs(student.module))
        calibration = partial(self._calibration, table.calibration_batch)
        finetune = partial(self.finetuning.with_int8, source=student.path) if table.epochs else None
        self.record.quantize(table, student.path, self.scratch, calibration, judge, cost, finetune)

    def _calibration(self, batch_size: int) -> Iterator[Feeds]:
        for batch in self.task.calibration_batches(batch_size):
            yield {self.task.input_name: batch.inputs.numpy()}
