"""The files that a run leaves in its folder."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import tomli_w
from torch import nn

from onnxdistill.errors import NetworkError, cannot_write
from onnxdistill.report import Report
from onnxdistill.report.assemble import Step, TargetFile, shipped_files
from onnxdistill.report.page import render_page
from onnxdistill.student import save_student
from onnxdistill.tasks import Task
from onnxdistill.tasks.base import Feeds
from onnxdistill.tensorfile import save_tensors

SAMPLES = 16
"""Real inputs in `samples.npz`, for `onnxdistill bench --inputs`."""


def write_module(student: nn.Module, network: str, task: Task, folder: Path) -> list[str]:
    """The student in PyTorch, beside the ONNX file that ships.

    Args:
        student: The float student.
        network: The name of the teacher's network, from which it is rebuilt.
        task: Gives an example and the number of classes.
        folder: The run folder.

    Returns:
        Notes for the user: a network that cannot be rebuilt ships without.

    Raises:
        OutputError: If the folder cannot be written.
    """
    try:
        save_student(student, network, len(task.class_names), folder / "student.pt", task.example_input(2))
    except NetworkError as error:
        return [f"student.pt was left out: {error.what}"]
    except OSError as error:
        raise cannot_write(f"The run folder in {folder.parent}", error) from error
    return []


def write_teacher(network: nn.Module, folder: Path) -> None:
    """The weights of a teacher that was trained in the run, as `teacher.weights` takes them.

    Args:
        network: The teacher.
        folder: The run folder; gets `teacher.pt`, a state dict.

    Raises:
        OutputError: If the folder cannot be written.
    """
    try:
        save_tensors(network.state_dict(), folder / "teacher.pt")
    except OSError as error:
        raise cannot_write(f"The run folder in {folder.parent}", error) from error


def write_files(samples: Feeds, steps: list[Step], targets: list[TargetFile], report: Report, folder: Path) -> None:
    """All ONNX files, real inputs to run them on, the report, and the recipe as it was resolved.

    Args:
        samples: The inputs, by name.
        steps: The first one is the teacher, and the last applied one the student.
        targets: Files for other kinds of machines.
        report: What it came to.
        folder: The run folder.

    Raises:
        OutputError: If the folder cannot be written.
    """
    try:
        for name, path in shipped_files(steps, targets).items():
            shutil.copyfile(path, folder / name)
        _write_arrays(samples, folder / "samples.npz")
        (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
        (folder / "report.html").write_text(render_page(report), encoding="utf-8")
        (folder / "recipe.toml").write_text(tomli_w.dumps(report.recipe), encoding="utf-8")
    except OSError as error:
        raise cannot_write(f"The run folder in {folder.parent}", error) from error


def _write_arrays(arrays: Feeds, path: Path) -> None:
    """As `numpy.savez`, which takes names for arguments of its own: an input may be called `file`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
