"""What a front refuses before hours of training: orders that contradict each other, places, and networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.nn.parameter import is_lazy

from onnxdistill.artifacts import write_teacher
from onnxdistill.device.jsonfile import check_place, read_json
from onnxdistill.errors import (
    DataError,
    ModelFileError,
    NetworkError,
    OutputError,
    UsageError,
    WeightsError,
    cannot_write,
)
from onnxdistill.logfile import check_log_place
from onnxdistill.networks import import_files
from onnxdistill.overrides import keys_given
from onnxdistill.recipe import Recipe
from onnxdistill.report import load_report
from onnxdistill.scratch import scratch_folder
from onnxdistill.stages.ship import RunFolder
from onnxdistill.stages.teacher import further_teachers
from onnxdistill.stages.teacher import teacher as build_teacher
from onnxdistill.tasks import Task

FRONT_JSON, FRONT_PAGE = "front.json", "front.html"
TEACHER = "teacher"
"""The run folder of a teacher that is trained."""

_WRITTEN = (FRONT_JSON, FRONT_PAGE)


def check_limits(overrides: Sequence[str], is_another: bool) -> None:
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


def check_places(
    target: Path,
    recipe: Recipe,
    source: Path,
    speedups: Sequence[float],
    log_file: Path | None,
    tensorboard: Path | None,
) -> None:
    """Refuses now what could not be written after hours, or would go with what is written.

    Args:
        target: The front's folder.
        recipe: As it was asked for.
        source: Its file.
        speedups: Of all students.
        log_file: Of all runs.
        tensorboard: Gets a folder for each run.
    """
    if (target / "report.json").exists():
        raise UsageError(f"{target} is the folder of a run, not of a front.", "Give a new folder with --out.")
    foreign = [] if _known_front(target) else [name for name in _WRITTEN if (target / name).exists()]
    if foreign:
        raise OutputError(
            f"{target / foreign[0]} is not one of a front, and would be replaced.", "Give a new folder with --out."
        )
    if log_file is not None and real_path(log_file) in [target / name for name in _WRITTEN]:
        raise OutputError(f"{log_file} is written by the front itself.", "Name another log file.")
    read = {f"{name}.weights": Path(table.weights) for name, table in recipe.further_teachers.items()}
    if recipe.teacher.train is not None:  # or else the run knows what it may replace
        read["teacher.weights"] = Path(recipe.teacher.weights)
    for name in (*([] if recipe.teacher.train is None else [TEACHER]), *(f"{speedup:g}x" for speedup in speedups)):
        for log in (log_file, None if tensorboard is None else tensorboard / name):
            if log is not None:
                check_log_place(log, [source], target / name)
        with RunFolder(target / name) as folder:
            for key, path in read.items():
                folder.check_reading(key, path)
            for file in _WRITTEN:
                check_place(target / file)


def check_teacher(target: Path, recipe: Recipe, task: Task) -> None:
    """Refuses before a teacher is trained what would be lost by that, or no student could begin with.

    Args:
        target: The front's folder.
        recipe: Has the training.
        task: Gives inputs.

    Raises:
        OutputError: If a run lies there that no front has made.
        UsageError: If a network does not run where students are trained, or has no such layers or weights, or if the
            teacher's own cannot be read again.
    """
    place = target / TEACHER
    if not _is_ours(place, recipe):
        raise OutputError(
            f"{place} is a run that this front has not made, and would be replaced.",
            "Give a new folder with --out, or name that run's teacher.pt as teacher.weights.",
        )
    _check_learning(recipe, task)


def name_of_teacher(recipe: Recipe) -> str:
    """Of the run that trains it, by which it is told from others."""
    return f"{recipe.name}-teacher"


def real_path(path: Path) -> Path:
    """As the file system sees it: a recipe takes `..` out of its paths without asking it.

    Raises:
        OutputError: If it can be no path.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise cannot_write(f"The folder {path}", error) from error


def _is_ours(place: Path, recipe: Recipe) -> bool:
    """Whether there is no run, or one that a front of this recipe has made."""
    try:
        return load_report(place / "report.json").name == name_of_teacher(recipe)
    except ModelFileError:
        return not (place / "report.json").exists()


def _check_learning(recipe: Recipe, task: Task) -> None:
    """Goes, with untrained weights, through what each student begins with."""
    with suppress(NetworkError):  # which is told below, by the key that names it
        import_files(recipe.network_names)
    untrained = recipe.teacher.model_copy(update={"train": None})
    network = build_teacher(recipe.model_copy(update={"teacher": untrained}), task).network
    for buffer in network.buffers():  # some are numbers only once the network is trained
        if not is_lazy(buffer) and buffer.is_floating_point():
            buffer.nan_to_num_()
    with scratch_folder() as folder:
        write_teacher(network, folder)
        read = {"weights": str(folder / "teacher.pt"), "new_head": False}
        try:
            build_teacher(recipe.model_copy(update={"teacher": untrained.model_copy(update=read)}), task)
        except WeightsError as error:
            raise NetworkError(
                f"The students of a front read the teacher's weights, and those of {recipe.teacher.network} cannot be "
                f"read again: {error.what}",
                "Leave out --pareto, or keep in its state dict what load_state_dict takes.",
            ) from error
    if recipe.distill is not None:
        further_teachers(recipe.distill.teachers, "distill.teachers", task, recipe.seed, recipe.distill)


def _known_front(folder: Path) -> dict[str, Any]:
    """What an earlier call has written of a front; nothing, if that is not one."""
    try:
        known = read_json(folder / FRONT_JSON, "front of students", "onnxdistill compress --pareto")
    except DataError:
        return {}
    return known if {"schema_version", "teacher", "points"} <= known.keys() else {}
