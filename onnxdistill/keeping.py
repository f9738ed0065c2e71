"""What an earlier call has left that need not be made again: a teacher, and the runs of its students.

A run's report says what it was made from and with. So there is nothing else to be noted, and wherever a call was ended,
what is complete is known by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import onnxdistill
from onnxdistill.device.host import HostFacts
from onnxdistill.device.places import key_of
from onnxdistill.errors import ModelFileError
from onnxdistill.recipe import Recipe
from onnxdistill.report import Report, load_report
from onnxdistill.sources import Sources

Data: TypeAlias = Mapping[str, Mapping[str, Any]]
"""A task's splits, as `describe_data` gives them."""


def is_student(report: Report, recipe: Recipe, sources: Sources, data: Data, host: HostFacts) -> bool:
    """Whether a run made what it would make now.

    Args:
        report: The run's.
        recipe: As it would be asked for; of its teacher, where the weights lie does not matter.
        sources: Of the recipe's networks.
        data: The splits.
        host: Where latencies are measured.
    """
    ours = recipe.model_dump(mode="json", exclude_none=True)
    has_settings = {**report.recipe, "teacher": None} == {**ours, "teacher": None}
    return has_settings and _is_from(report, sources, data) and _is_of(report, host)


def trained_teacher(folder: Path, recipe: Recipe, sources: Sources, data: Data) -> Report | None:
    """The report of a run that has trained the teacher of a recipe, as it would be trained now; None if it has not.

    Args:
        folder: The run's.
        recipe: Has the training.
        sources: Of the recipe's networks.
        data: The splits.
    """
    try:
        report = load_report(folder / "report.json")
    except ModelFileError:
        return None
    ours = recipe.model_dump(mode="json", exclude_none=True)
    is_trained_so = all(report.recipe.get(key) == ours[key] for key in ("teacher", "data", "task", "seed"))
    of_teacher = {place: digests for place, digests in sources.items() if place.startswith("teacher")}
    is_it = is_trained_so and _is_from(report, of_teacher, data) and (folder / "teacher.pt").is_file()
    return report if is_it else None


def _is_from(report: Report, sources: Sources, data: Data) -> bool:
    """Whether this version made it of the same files."""
    is_ours = report.onnxdistill_version == onnxdistill.__version__
    return is_ours and report.sources == sources and report.data == data


def _is_of(report: Report, host: HostFacts) -> bool:
    """Whether latencies were measured on such a machine."""
    try:
        before = HostFacts.from_json(report.host)
    except (KeyError, TypeError):  # of a release that told other facts
        return False
    return key_of(before) == key_of(host) and before.os == host.os
