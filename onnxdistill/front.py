"""Several students of one teacher at several speeds: the front that a deployment chooses from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from onnxdistill.device.host import HostFacts
from onnxdistill.device.jsonfile import write_text
from onnxdistill.errors import (
    LimitsMissedError,
    ModelFileError,
    ResultError,
    UsageError,
)
from onnxdistill.frontchecks import (
    FRONT_JSON,
    FRONT_PAGE,
    TEACHER,
    check_limits,
    check_places,
    check_teacher,
    name_of_teacher,
    real_path,
)
from onnxdistill.gate import place_of
from onnxdistill.keeping import Data, is_student, trained_teacher
from onnxdistill.pipeline import compress
from onnxdistill.recipe import Recipe, load_recipe
from onnxdistill.report import Report, load_report
from onnxdistill.report.front import FrontPoint, StudentFront, point_of
from onnxdistill.report.frontpage import render_front_page
from onnxdistill.report.fronttable import render_front
from onnxdistill.sources import Sources, file_source, network_sources
from onnxdistill.tasks import TASKS, Task

# What a run leaves out that only makes the teacher.
_WITHOUT_STUDENT = tuple(f"{table}=" for table in ("plan", "prune", "factorize", "distill", "quantize", "limits"))

_NOT_TRIED, _NOT_YET = "Not tried: a slower one is out of reach.", "Not made yet."


def compress_front(
    recipe: Path | str,
    count: int,
    *,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    log_file: Path | str | None = None,
    tensorboard: Path | str | None = None,
) -> StudentFront:
    """Runs a recipe several times, for speed-ups in equal ratios up to the one that is planned for.

    Each run's `limits.min_speedup` is its own speed-up, and a `limits.max_latency_ms` of the recipe is left out. A
    teacher that is to be trained is so in a run of its own, before all students. What an earlier call has made on this
    machine with the same settings and the same teacher is not made again.

    Args:
        recipe: The recipe's TOML file.
        count: How many students, at least one.
        out: Gets a run folder for each, named by its speed-up, `teacher` for one that is trained, and `front.json` and
            `front.html`; `runs/NAME-front` by default.
        overrides: As for `compress`; `plan.speedup` is that of the fastest student.
        console: As for `compress`.
        log_file: As for `compress`.
        tensorboard: As for `compress`.

    Raises:
        UsageError: If nothing is planned for, if overrides set another limit on speed, or as `compress` does.
        LimitsMissedError: If no student keeps to its limits; what was made of the front is written all the same.
        ResultError: If there is no teacher, or if no student is one for another reason.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("A front is several runs, and torchrun is for one.", "Start it without torchrun.")
    # Absolute from now on: a network of the user's own may change the working folder.
    source = Path(recipe).absolute()
    loaded = load_recipe(source, overrides)
    if loaded.plan is None or loaded.plan.speedup is None:
        raise UsageError(
            "A front needs to know how far it goes.", "Give the fastest student's --speedup, or plan.speedup."
        )
    speedups = _ratios(loaded.plan.speedup, count)
    check_limits(overrides, loaded.limits.min_speedup not in (None, loaded.plan.speedup))
    overrides = (*overrides, *_places(loaded))
    log_file, tensorboard = (None if place is None else Path(place).absolute() for place in (log_file, tensorboard))
    target = real_path(Path(out) if out is not None else Path("runs") / f"{loaded.name}-front")
    check_places(target, loaded, source, speedups, log_file, tensorboard)
    host = place_of(loaded.bench).host
    task: Task = TASKS[loaded.task](loaded)
    outputs = _Outputs(console, log_file, tensorboard)
    sources = network_sources(loaded, len(task.class_names))
    front = _Front(source, loaded, overrides, target, host, sources, task.describe_data(), outputs)
    lacks_teacher = loaded.teacher.train is not None and front.trained is None
    if lacks_teacher:
        check_teacher(target, loaded, task)
    # Not kept: every run reads the data again.
    del task
    if lacks_teacher:
        front.train_teacher(speedups)
    return front.of(speedups)


def _reason(name: str, errors: Sequence[ResultError]) -> ResultError:
    """Why there is no student at all."""
    others = [error for error in errors if not isinstance(error, LimitsMissedError)]
    if others:  # it knows what to do
        return others[0]
    return LimitsMissedError(f"No speed-up of {name} can be reached. {errors[0].what}", "Ask for less.")


def _deliver(front: StudentFront, target: Path, console: Console | None) -> None:
    """Shows the front.

    Raises:
        LimitsMissedError: If no student keeps to its limits.
    """
    if console is not None:
        console.print()
        console.print(render_front(front))
        console.print("", target / FRONT_PAGE, sep="\n", highlight=False, soft_wrap=True)
    if not any(point.shipped for point in front.points):
        raise LimitsMissedError(
            f"No student of {front.name} keeps to its limits: {front.nearest()}.",
            f"What was measured lies in {target}. Ask for less, or train longer.",
        )


@dataclass(frozen=True)
class Made:
    """A student's report and its run folder."""

    report: Report
    folder: Path


@dataclass(frozen=True)
class _Outputs:
    """Where all runs of a front show what they do."""

    console: Console | None
    log_file: Path | None
    tensorboard: Path | None

    def begin(self, what: str) -> None:
        if self.console is not None:
            self.console.print(Text(f"\n{what}\n", "bold"))

    def compress(self, recipe: Path, folder: Path, overrides: tuple[str, ...]) -> Report:
        """One run; its curves are told from those of others by the name of its folder."""
        curves = None if self.tensorboard is None else self.tensorboard / folder.name
        return compress(
            recipe, out=folder, overrides=overrides, console=self.console, log_file=self.log_file, tensorboard=curves
        )


@dataclass(frozen=True)
class _Run:
    """One of the students.

    Attributes:
        speedup: That is asked for.
        folder: Its run folder.
        source: The recipe's file.
        overrides: All of them.
        outputs: Where it shows what it does.
    """

    speedup: float
    folder: Path
    source: Path
    overrides: tuple[str, ...]
    outputs: _Outputs

    def tried(self) -> Made | ResultError:
        """The student, if need be one that misses its limits; or why there is none."""
        self.outputs.begin(f"{self.speedup:g} times as fast as the teacher")
        before = [made.report for made in self.reports()]
        try:
            report = self.outputs.compress(self.source, self.folder, self.overrides)
        except ResultError as error:
            # Of a plan that came nowhere near there is nothing; else there is a student that misses something.
            made = [one for one in self.reports() if not one.report.shipped and one.report not in before]
            return made[0] if made else error
        return Made(report, self.folder)

    def reports(self) -> Iterator[Made]:
        """What there is, whatever it was made of."""
        for folder in (self.folder, self.folder.with_name(f"{self.folder.name}.missed")):
            with suppress(ModelFileError):
                yield Made(load_report(folder / "report.json"), folder)


@dataclass(frozen=True)
class _Front:
    """All students of one teacher.

    Attributes:
        source: The recipe's file.
        recipe: As it was asked for.
        overrides: All of them, but for what each student is asked for.
        folder: The front's.
        host: Where latencies are measured.
        sources: Of the recipe's networks, as they were in the beginning.
        data: The splits.
        outputs: Where all runs show what they do.
    """

    source: Path
    recipe: Recipe
    overrides: tuple[str, ...]
    folder: Path
    host: HostFacts
    sources: Sources
    data: Data
    outputs: _Outputs

    @property
    def trained(self) -> Report | None:
        """The report of the run that trained the teacher; None if there is none, or none is needed."""
        if self.recipe.teacher.train is None:
            return None
        return trained_teacher(self.folder / TEACHER, self.recipe, self.sources, self.data)

    def train_teacher(self, speedups: Sequence[float]) -> None:
        """Trains the teacher in a run of its own."""
        self.outputs.begin("The teacher of all students")
        items = (*self.overrides, *_WITHOUT_STUDENT, f"name={name_of_teacher(self.recipe)}")
        report = self.outputs.compress(self.source, self.folder / TEACHER, items)
        self._written(report, [self._found(speedup) for speedup in speedups])

    def of(self, speedups: Sequence[float]) -> StudentFront:
        """Makes what is missing, writes the front after each student, and shows it in the end."""
        points: list[FrontPoint] = []
        errors: list[ResultError] = []
        front: StudentFront | None = None
        for speedup in speedups:
            outcome = self._kept(speedup, tell=True) or self._run(speedup).tried()
            if isinstance(outcome, Made):
                points.append(point_of(outcome.report, speedup, outcome.folder.name))
                later = [self._found(faster) for faster in speedups[len(points) :]]
                front = self._written(front or outcome.report, [*points, *later])
                continue
            if outcome.of_teacher:  # as that of every other student would end
                raise outcome
            errors.append(outcome)
            points.append(FrontPoint(speedup, "", False, note=outcome.what))
            if isinstance(outcome, LimitsMissedError):  # what is faster still cannot be reached either
                break
        points += [FrontPoint(faster, "", False, note=_NOT_TRIED) for faster in speedups[len(points) :]]
        if front is None:
            if (trained := self.trained) is not None:
                self._written(trained, points)
            raise _reason(self.recipe.name, errors)
        front = self._written(front, points)
        _deliver(front, self.folder, self.outputs.console)
        return front

    def _run(self, speedup: float) -> _Run:
        weights = self.folder / TEACHER / "teacher.pt"
        trained = [f"teacher.weights={weights}", "teacher.train=", "teacher.new_head="]
        items = (*self.overrides, *(trained if self.recipe.teacher.train is not None else []), *_asked(speedup))
        return _Run(speedup, self.folder / f"{speedup:g}x", self.source, items, self.outputs)

    def _kept(self, speedup: float, *, tell: bool = False) -> Made | None:
        """What an earlier call has made here of the same teacher with the same settings."""
        run = self._run(speedup)
        recipe = load_recipe(self.source, run.overrides)
        sources = dict(self.sources)
        if self.recipe.teacher.train is not None:
            beside = {place: source for place, source in sources.items() if not place.startswith("teacher")}
            sources = {"teacher": file_source(recipe.teacher), **beside}
        for made in run.reports():
            if is_student(made.report, recipe, sources, self.data, self.host):
                if tell and self.outputs.console is not None:
                    kept = Text(f"{made.folder} is kept: it was made with the same settings.")
                    self.outputs.console.print(kept, soft_wrap=True)
                return made
        return None

    def _found(self, speedup: float) -> FrontPoint:
        """What there is of a student before its turn."""
        kept = self._kept(speedup)
        if kept is None:
            return FrontPoint(speedup, "", False, note=_NOT_YET)
        return point_of(kept.report, speedup, kept.folder.name)

    def _written(self, first: Report | StudentFront, points: Sequence[FrontPoint]) -> StudentFront:
        teacher_folder = "" if self.recipe.teacher.train is None else TEACHER
        front = StudentFront.of(first, self.recipe.limits.max_drop, points, teacher_folder)
        write_text(self.folder / FRONT_JSON, front.to_json())
        write_text(self.folder / FRONT_PAGE, render_front_page(front))
        return front


def _places(recipe: Recipe) -> list[str]:
    """What a recipe reads, as overrides: relative ones are so to the folder of the command."""
    tables = {"teacher": recipe.teacher, **recipe.further_teachers}
    named = {name.replace("[", ".").replace("]", ""): table for name, table in tables.items()}
    found = [f"{name}.{key}={getattr(table, key)}" for name, table in named.items() for key in ("network", "weights")]
    return found if recipe.data.root is None else [*found, f"data.root={recipe.data.root}"]


def _ratios(speedup: float, count: int) -> list[float]:
    """Speed-ups in equal ratios, the last one exact, and the others in three digits."""
    if count < 1:
        raise UsageError(f"{count} students are no front.", "Ask for one at least.")
    found = [*(float(f"{speedup ** (number / count):.3g}") for number in range(1, count)), speedup]
    if any(faster <= slower for slower, faster in zip([1.0, *found], found, strict=False)):
        raise UsageError(
            f"{count} students up to {speedup:g} times as fast as the teacher are too near to each other.",
            "Ask for fewer, or for a faster one.",
        )
    return found


def _asked(speedup: float) -> list[str]:
    return [f"plan.speedup={speedup}", f"limits.min_speedup={speedup}", "limits.max_latency_ms="]
