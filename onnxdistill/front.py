"""Several students of one teacher at several speeds: the front that a deployment chooses from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from onnxdistill.device.host import HostFacts
from onnxdistill.device.jsonfile import check_place, write_text
from onnxdistill.errors import LimitsMissedError, ModelFileError, OutputError, ResultError, UsageError
from onnxdistill.gate import place_of
from onnxdistill.keeping import ORIGIN, TEACHER, SharedTeacher, foreign_file, has_settings, is_of
from onnxdistill.overrides import keys_given
from onnxdistill.pipeline import compress
from onnxdistill.recipe import Recipe, load_recipe
from onnxdistill.report import Report, load_report
from onnxdistill.report.front import FrontPoint, StudentFront, point_of
from onnxdistill.report.frontpage import render_front_page
from onnxdistill.report.fronttable import render_front
from onnxdistill.stages.ship import RunFolder
from onnxdistill.tasks import TASKS, Task

FRONT_JSON, FRONT_PAGE = "front.json", "front.html"

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
    teacher that is trained in the runs is trained in the first one that makes a student. What an earlier call has made
    on this machine with the same settings and the same teacher is not made again.

    Args:
        recipe: The recipe's TOML file.
        count: How many students, at least one.
        out: Gets a run folder for each, named by its speed-up, and `front.json` and `front.html`; `runs/NAME-front` by
            default.
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
    _check_limits(overrides, loaded.limits.min_speedup not in (None, loaded.plan.speedup))
    overrides = (*overrides, *_places(loaded))
    log_file, tensorboard = (None if place is None else Path(place).absolute() for place in (log_file, tensorboard))
    target = (Path(out) if out is not None else Path("runs") / f"{loaded.name}-front").absolute()
    _check_places(target, speedups, is_trained=loaded.teacher.train is not None)
    host = place_of(loaded.bench).host
    # Not kept: every run reads the data again.
    task: Task = TASKS[loaded.task](loaded)
    teacher = SharedTeacher(target, loaded, task.describe_data(), len(task.class_names))
    del task
    points: list[FrontPoint] = []
    errors: list[ResultError] = []
    front: StudentFront | None = None

    def run_of(speedup: float) -> _Run:
        items = (*overrides, *teacher.overrides, *_asked(speedup))
        return _Run(speedup, target / f"{speedup:g}x", source, items, host)

    for speedup in speedups:
        run = run_of(speedup)
        outcome = run.kept(teacher, console) or run.tried(console, log_file, tensorboard)
        if isinstance(outcome, Made):
            teacher.remember(outcome.report, outcome.folder)
            points.append(point_of(outcome.report, speedup, outcome.folder.name))
            later = [run_of(faster).found(teacher) for faster in speedups[len(points) :]]
            front = StudentFront.of(front or outcome.report, loaded.limits.max_drop, [*points, *later])
            _write(front, target)
            continue
        if outcome.of_teacher:  # as that of every other student would end
            raise outcome
        errors.append(outcome)
        points.append(FrontPoint(speedup, "", False, note=outcome.what))
        if isinstance(outcome, LimitsMissedError):  # what is faster still cannot be reached either
            break
    points += [FrontPoint(faster, "", False, note=_NOT_TRIED) for faster in speedups[len(points) :]]
    if front is None:
        raise _reason(loaded.name, errors)
    front = StudentFront.of(front, loaded.limits.max_drop, points)
    _write(front, target)
    _deliver(front, target, console)
    return front


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
class _Run:
    """One of the students."""

    speedup: float
    folder: Path
    recipe: Path
    overrides: tuple[str, ...]
    host: HostFacts

    def found(self, teacher: SharedTeacher) -> FrontPoint:
        """What there is of it before its turn."""
        kept = self.kept(teacher, None)
        if kept is None:
            return FrontPoint(self.speedup, "", False, note=_NOT_YET)
        return point_of(kept.report, self.speedup, kept.folder.name)

    def kept(self, teacher: SharedTeacher, console: Console | None) -> Made | None:
        """What an earlier call has made here of the same teacher with the same settings."""
        recipe = load_recipe(self.recipe, self.overrides)
        for folder, report in self._reports():
            if teacher.made(report, folder) and has_settings(report, recipe) and is_of(report, self.host):
                if console is not None:
                    kept = Text(f"{folder} is kept: it was made with the same settings.")
                    console.print(kept, soft_wrap=True)
                return Made(report, folder)
        return None

    def tried(
        self, console: Console | None, log_file: Path | str | None, tensorboard: Path | str | None
    ) -> Made | ResultError:
        """The student, if need be one that misses its limits; or why there is none."""
        if console is not None:
            console.print(Text(f"\n{self.speedup:g} times as fast as the teacher\n", "bold"))
        before = [report for _, report in self._reports()]
        curves = None if tensorboard is None else Path(tensorboard) / self.folder.name
        settings: dict[str, Any] = {"overrides": self.overrides, "console": console, "log_file": log_file}
        try:
            report = compress(self.recipe, out=self.folder, tensorboard=curves, **settings)
        except ResultError as error:
            # Of a plan that came nowhere near there is nothing; else there is a student that misses something.
            made = [one for one in self._reports() if not one[1].shipped and one[1] not in before]
            return Made(made[0][1], made[0][0]) if made else error
        return Made(report, self.folder)

    def _reports(self) -> Iterator[tuple[Path, Report]]:
        for folder in (self.folder, self.folder.with_name(f"{self.folder.name}.missed")):
            with suppress(ModelFileError):
                yield folder, load_report(folder / "report.json")


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


def _check_limits(overrides: Sequence[str], is_another: bool) -> None:
    """Refuses a limit that was asked for and would be left out; those of a recipe are for its one student.

    Args:
        overrides: What was asked for.
        is_another: Whether the speed-up that has to be is not the one that is planned for.
    """
    left_out = {"limits.max_latency_ms", *(["limits.min_speedup"] if is_another else [])}
    for item in overrides:
        if left_out.intersection(keys_given(item)):
            raise UsageError(
                f"--set {item!r} has no effect on a front, whose students are each held to their own speed-up.",
                "Leave it out.",
            )


def _check_places(target: Path, speedups: Sequence[float], *, is_trained: bool) -> None:
    """Refuses now what could not be written after hours."""
    if (target / "report.json").exists():
        raise UsageError(f"{target} is the folder of a run, not of a front.", "Give a new folder with --out.")
    foreign = foreign_file(target, (FRONT_JSON, FRONT_PAGE), is_trained=is_trained)
    if foreign is not None:
        raise OutputError(
            f"{target / foreign} is not one of a front, and would be replaced.", "Give a new folder with --out."
        )
    for speedup in speedups:
        with RunFolder(target / f"{speedup:g}x"):
            for name in (FRONT_JSON, FRONT_PAGE, TEACHER, ORIGIN):
                check_place(target / name)


def _write(front: StudentFront, target: Path) -> None:
    write_text(target / FRONT_JSON, front.to_json())
    write_text(target / FRONT_PAGE, render_front_page(front))
