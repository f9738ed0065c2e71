"""What an earlier call has left that need not be made again: a teacher, and the runs of its students."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxdistill
from onnxdistill.device.host import HostFacts
from onnxdistill.device.jsonfile import read_json, write_json
from onnxdistill.errors import DataError, cannot_write
from onnxdistill.recipe import Recipe
from onnxdistill.report import Report

TEACHER, ORIGIN = "teacher.pt", "teacher.json"
"""Weights of a teacher that was trained in a run, and what it was made of."""


class SharedTeacher:
    """The teacher of all students: where it comes from, its file, and its weights, if it was trained in a run.

    Args:
        folder: The front's.
        recipe: As it was asked for.
        data: The task's splits, as `describe_data` gives them.
    """

    def __init__(self, folder: Path, recipe: Recipe, data: Mapping[str, Any]) -> None:
        self._folder = folder
        tables = recipe.model_dump(mode="json", exclude_none=True)
        self._origin = {
            "onnxdistill": onnxdistill.__version__,
            "weights_sha256": _digest(Path(recipe.teacher.weights)),
            "network_sha256": _digest(Path(recipe.teacher.network.rpartition(":")[0])),
            "splits": dict(data),
            **{key: tables[key] for key in ("teacher", "data", "task", "seed")},
        }
        self._is_trained = recipe.teacher.train is not None
        try:
            known = read_json(folder / ORIGIN, "origin of a teacher", "onnxdistill compress --pareto")
        except DataError:
            known = {}
        self._sha256 = known.get("teacher_onnx_sha256") if known.get("origin") == self._origin else None

    @property
    def overrides(self) -> list[str]:
        """What makes a run take the weights that there are."""
        weights = self._folder / TEACHER
        if self._sha256 is None or not self._is_trained or not weights.is_file():
            return []
        return [f"teacher.weights={weights}", "teacher.train=", "teacher.new_head="]

    def made(self, report: Report) -> bool:
        """Whether it is the teacher of a run's student."""
        return self._sha256 is not None and self._sha256 == _teacher_file(report)

    def remember(self, report: Report, folder: Path) -> None:
        """Notes what the first student was made of."""
        if self._sha256 is not None:
            return
        try:
            if self._is_trained:
                fresh = self._folder / f".{TEACHER}.new"
                shutil.copyfile(folder / TEACHER, fresh)
                fresh.replace(self._folder / TEACHER)
        except OSError as error:
            raise cannot_write(f"The folder {self._folder}", error) from error
        self._sha256 = _teacher_file(report)
        write_json(self._folder / ORIGIN, {"origin": self._origin, "teacher_onnx_sha256": self._sha256})


def _teacher_file(report: Report) -> str | None:
    return next((one.sha256 for one in report.artifacts if one.file == "teacher.onnx"), None)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # none, or the name of weights that are not a file
        return None


def has_settings(report: Report, recipe: Recipe) -> bool:
    """Whether a run was asked for the same as a recipe, but for the teacher, which is told by its file."""
    ours = recipe.model_dump(mode="json", exclude_none=True)
    return {**report.recipe, "teacher": None} == {**ours, "teacher": None}


def is_of(report: Report, host: HostFacts) -> bool:
    """Whether latencies were measured on such a machine, by this version."""
    facts = host.to_json()
    same = all(report.host.get(key) == facts[key] for key in ("cpu", "usable_cpus", "onnxruntime", "os"))
    return same and report.onnxdistill_version == onnxdistill.__version__
