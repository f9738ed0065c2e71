"""What an earlier call has left that need not be made again: a teacher, and the runs of its students."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch.nn.parameter import is_lazy

import onnxdistill
from onnxdistill.device.host import HostFacts
from onnxdistill.device.jsonfile import read_json, write_json
from onnxdistill.device.places import key_of
from onnxdistill.errors import DataError, NetworkError, cannot_write
from onnxdistill.networks import build_network
from onnxdistill.networks.user import user_builder
from onnxdistill.recipe import FurtherTeacherTable, Recipe, TeacherTable
from onnxdistill.recipe.weights import OWN_WEIGHTS
from onnxdistill.report import Report
from onnxdistill.training.checkpoint import fingerprint, shown

TEACHER, ORIGIN = "teacher.pt", "teacher.json"
"""Weights of a teacher that was trained in a run, and what it was made of."""


class SharedTeacher:
    """The teacher of all students: where it comes from, its file, and its weights, if it was trained in a run.

    Args:
        folder: The front's.
        recipe: As it was asked for.
        data: The task's splits, as `describe_data` gives them.
        classes: How many there are.
    """

    def __init__(self, folder: Path, recipe: Recipe, data: Mapping[str, Any], classes: int) -> None:
        self._folder = folder
        tables = recipe.model_dump(mode="json", exclude_none=True)
        further = recipe.further_teachers
        self._read = _digests(
            {name: table for name, table in further.items() if name.startswith("distill.")}, classes, recipe.seed
        )
        of_teacher: dict[str, TeacherTable | FurtherTeacherTable] = {"teacher": recipe.teacher}
        of_teacher |= {name: table for name, table in further.items() if not name.startswith("distill.")}
        self._origin = {
            "onnxdistill": onnxdistill.__version__,
            "read": _digests(of_teacher, classes, recipe.seed),
            "splits": dict(data),
            **{key: tables[key] for key in ("teacher", "data", "task", "seed")},
        }
        self._is_trained = recipe.teacher.train is not None
        try:
            known = read_json(folder / ORIGIN, "origin of a teacher", "onnxdistill compress --pareto")
        except DataError:
            known = {}
        is_same = known.get("origin") == self._origin
        self._sha256 = known.get("teacher_onnx_sha256") if is_same else None
        self._students: dict[str, Any] = known.get("students", {}) if is_same else {}

    @property
    def overrides(self) -> list[str]:
        """What makes a run take the weights that there are."""
        weights = self._folder / TEACHER
        if self._sha256 is None or not self._is_trained or not weights.is_file():
            return []
        return [f"teacher.weights={weights}", "teacher.train=", "teacher.new_head="]

    def made(self, report: Report, folder: Path) -> bool:
        """Whether it is the teacher of a run's student, which learned from nothing else than it would now."""
        known = self._sha256 is not None and self._sha256 == _teacher_file(report)
        return known and self._students.get(folder.name) == self._read

    def remember(self, report: Report, folder: Path) -> None:
        """Notes what a student was made of, and takes the teacher's weights if they are not here yet."""
        weights = self._folder / TEACHER
        takes = self._is_trained and (folder / TEACHER).is_file() and (self._sha256 is None or not weights.is_file())
        self._sha256 = _teacher_file(report)
        self._students[folder.name] = self._read
        try:
            # In this order, weights are never those of another origin, nor without one.
            if takes:
                weights.unlink(missing_ok=True)
            origin = {"origin": self._origin, "teacher_onnx_sha256": self._sha256, "students": self._students}
            write_json(self._folder / ORIGIN, origin)
            if takes:
                fresh = self._folder / f".{TEACHER}.new"
                shutil.copyfile(folder / TEACHER, fresh)
                fresh.replace(weights)
        except OSError as error:
            raise cannot_write(f"The folder {self._folder}", error) from error


def foreign_file(folder: Path, names: Iterable[str], *, is_trained: bool) -> str | None:
    """A file of somebody else that a front would replace.

    Args:
        folder: The front's.
        names: Of the files that every front writes, beside those here.
        is_trained: Whether this one writes the weights of its teacher.
    """
    try:
        known = read_json(folder / ORIGIN, "origin of a teacher", "onnxdistill compress --pareto")
    except DataError:
        known = {}
    origin = known.get("origin") if "teacher_onnx_sha256" in known else None
    table = origin.get("teacher") if isinstance(origin, dict) else None
    found = [] if isinstance(table, dict) else [*names, ORIGIN]
    found += [TEACHER] if is_trained and not (isinstance(table, dict) and "train" in table) else []
    return next((name for name in found if (folder / name).exists()), None)


def _digests(
    tables: Mapping[str, TeacherTable | FurtherTeacherTable], classes: int, seed: int
) -> dict[str, dict[str, str | None]]:
    """Of what networks are built from, by their place in the recipe."""
    return {
        name: {
            "network": table.network,
            "network_sha256": _digest(_source_of(table.network)),
            "weights_sha256": _own_weights(table.network, classes, seed)
            if table.weights == OWN_WEIGHTS
            else _digest(Path(table.weights)),
        }
        for name, table in tables.items()
    }


def _own_weights(network: str, classes: int, seed: int) -> str | None:
    """What a function has loaded, whatever it was from."""
    try:
        built = build_network(network, classes, seed)
    except NetworkError:  # the run refuses it, too, and knows by which key it was named
        return None
    tensors = [*built.named_parameters(), *built.named_buffers()]
    there = [(name, tensor) for name, tensor in tensors if not is_lazy(tensor)]  # the others are drawn
    texts = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in there]
    return fingerprint(shown(built), repr(texts), *(tensor for _, tensor in there))


def _source_of(network: str) -> Path:
    """The file that a user's own network comes from, if it is known by its name."""
    place, _, function = network.rpartition(":")
    if place.endswith(".py") or place in ("", "torchvision"):
        return Path(place)
    try:
        user_builder(place, function, None)
    except NetworkError:  # the run refuses it, too, and knows by which key it was named
        return Path()
    return Path(getattr(sys.modules[place], "__file__", None) or "")


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
    try:
        before = HostFacts.from_json(report.host)
    except (KeyError, TypeError):  # of a release that told other facts
        return False
    same = key_of(before) == key_of(host) and before.os == host.os
    return same and report.onnxdistill_version == onnxdistill.__version__
