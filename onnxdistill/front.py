"""Several students of one teacher at several speeds: the front that a deployment chooses from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from onnxdistill.errors import LimitsMissedError, ModelFileError, UsageError, cannot_write
from onnxdistill.pipeline import compress
from onnxdistill.recipe import load_recipe
from onnxdistill.report import Report, load_report
from onnxdistill.report.front import Front, FrontPoint, point_of, render_front
from onnxdistill.report.frontpage import render_front_page

FRONT_JSON, FRONT_PAGE = "front.json", "front.html"


def compress_front(
    recipe: Path | str,
    count: int,
    *,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    log_file: Path | str | None = None,
    tensorboard: Path | str | None = None,
) -> Front:
    """Runs a recipe several times, for speed-ups in equal ratios up to the one that is planned for.

    A teacher that is trained in the runs is trained in the first one only. What is there already of an earlier call
    with the same settings is not made again.

    Args:
        recipe: The recipe's TOML file.
        count: How many students.
        out: Gets a run folder for each, named by its speed-up, and `front.json` and `front.html`; `runs/NAME-front` by
            default.
        overrides: As for `compress`; `plan.speedup` is that of the fastest student.
        console: As for `compress`.
        log_file: As for `compress`.
        tensorboard: As for `compress`.

    Raises:
        UsageError: If nothing is planned for, or as `compress` does.
        LimitsMissedError: If no student keeps to its limits; the front is written all the same.
    """
    loaded = load_recipe(Path(recipe), overrides)
    if loaded.plan is None or loaded.plan.speedup is None:
        raise UsageError("A front needs to know how far it goes.", "Name the fastest student's --speedup.")
    target = Path(out) if out is not None else Path("runs") / f"{loaded.name}-front"
    if (target / "report.json").exists():
        raise UsageError(f"{target} is the folder of a run, not of a front.", "Give a new folder with --out.")
    points: list[FrontPoint] = []
    first: Report | None = None
    shared: list[str] = []
    for speedup in _ratios(loaded.plan.speedup, count):
        run = _Run(speedup, target / f"{speedup:g}x", Path(recipe), (*overrides, *shared, *_asked(speedup)))
        if console is not None:
            console.print(f"\n{loaded.name}, {speedup:g} times as fast as the teacher\n", style="bold")
        outcome = run.kept() or run.made(console, log_file, tensorboard)
        if isinstance(outcome, str):
            points.append(FrontPoint(speedup, "", False, note=outcome))
            continue
        report, folder = outcome
        first = first or report
        points.append(point_of(report, speedup, folder.name))
        if (trained := folder / "teacher.pt").is_file() and not shared:
            shared = [f"teacher.weights={trained.absolute()}", "teacher.train="]
    if first is None:
        raise LimitsMissedError(f"No speed-up of {loaded.name} can be reached: {points[0].note}", "Ask for less.")
    front = Front.of(first, loaded.limits.max_drop, points)
    _write(front, target)
    if console is not None:
        console.print()
        console.print(render_front(front))
        console.print("", target / FRONT_PAGE, sep="\n", highlight=False, soft_wrap=True)
    if not any(point.shipped for point in points):
        raise LimitsMissedError(
            f"None of the {count} students of {loaded.name} keeps to its limits: {front.nearest()}.",
            f"What was measured lies in {target}. Ask for less, or train longer.",
        )
    return front


@dataclass(frozen=True)
class _Run:
    """One of the students."""

    speedup: float
    folder: Path
    recipe: Path
    overrides: tuple[str, ...]

    def kept(self) -> tuple[Report, Path] | None:
        """What an earlier call has made with the same settings."""
        resolved = load_recipe(self.recipe, self.overrides)
        for folder in (self.folder, self.folder.with_name(f"{self.folder.name}.missed")):
            try:
                report = load_report(folder / "report.json")
            except ModelFileError:
                continue
            if report.recipe == resolved.model_dump(mode="json", exclude_none=True):
                return report, folder
        return None

    def made(
        self, console: Console | None, log_file: Path | str | None, tensorboard: Path | str | None
    ) -> tuple[Report, Path] | str:
        """The student; or why there is none."""
        curves = None if tensorboard is None else Path(tensorboard) / self.folder.name
        try:
            report = compress(
                self.recipe,
                out=self.folder,
                overrides=self.overrides,
                console=console,
                log_file=log_file,
                tensorboard=curves,
            )
        except LimitsMissedError as error:
            # Of a plan that came nowhere near, nothing is left; else there is a student that misses something.
            return self.kept() or error.what
        return report, self.folder


def _ratios(speedup: float, count: int) -> list[float]:
    return [float(f"{speedup ** (number / count):.3g}") for number in range(1, count + 1)]


def _asked(speedup: float) -> list[str]:
    return [f"plan.speedup={speedup}", f"limits.min_speedup={speedup}"]


def _write(front: Front, target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in ((FRONT_JSON, front.to_json()), (FRONT_PAGE, render_front_page(front))):
            fresh = target / f".{name}.{os.getpid()}"
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(target / name)
    except OSError as error:
        raise cannot_write(f"The folder {target}", error) from error
