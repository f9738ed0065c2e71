"""What the networks of a run are built from: their code and their weights, by digests."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeAlias
from uuid import uuid4
from weakref import WeakKeyDictionary

import numpy as np
from torch.nn.parameter import is_lazy

from onnxdistill.errors import NetworkError, is_of_memory
from onnxdistill.networks import build_network
from onnxdistill.networks.published import is_published
from onnxdistill.networks.user import user_builder
from onnxdistill.recipe import FurtherTeacherTable, Recipe, TeacherTable
from onnxdistill.recipe.weights import NO_WEIGHTS, OWN_WEIGHTS
from onnxdistill.training.checkpoint import fingerprint, shown

Source: TypeAlias = dict[str, str | None]
"""A network and what it is built from: `network`, `network_sha256`, `weights`, `weights_sha256`.

A built-in network has no digest of its code. Weights in a file have no name, since it does not matter where they lie.
"""
Sources: TypeAlias = Mapping[str, Source]
"""By the network's place in the recipe."""

_SEEN = WeakKeyDictionary[ModuleType, str | None]()
"""Digests of modules that are imported: what runs is not what has been written since."""


def network_sources(recipe: Recipe, classes: int) -> Sources:
    """What is read for the teacher, and for the networks that it or the student learns from.

    Args:
        recipe: Names them.
        classes: How many there are.
    """
    tables: dict[str, TeacherTable | FurtherTeacherTable] = {"teacher": recipe.teacher, **recipe.further_teachers}
    found = {place: file_source(table) for place, table in tables.items()}
    for place, table in tables.items():
        if table.weights == OWN_WEIGHTS:
            found[place]["weights_sha256"] = _own_weights(table.network, classes, recipe.seed)
    return found


def file_source(table: TeacherTable | FurtherTeacherTable) -> Source:
    """What is read for one network whose weights, if there are any, lie in a file or are published under a name."""
    is_named = table.weights in (NO_WEIGHTS, OWN_WEIGHTS) or is_published(table.network, table.weights)
    digest = None if is_named else _digest(Path(table.weights))
    return {
        "network": table.network,
        "network_sha256": _code(table.network),
        "weights": table.weights if digest is None else None,
        "weights_sha256": digest,
    }


def _own_weights(network: str, classes: int, seed: int) -> str | None:
    """What a function has loaded, whatever it was from."""
    # The shared generators, since it is these that a user's function may draw from.
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        built = build_network(network, classes, seed)
        tensors = [*built.named_parameters(), *built.named_buffers()]
        there = [(name, tensor) for name, tensor in tensors if not is_lazy(tensor)]  # the others are drawn
        texts = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in there]
        return fingerprint(shown(built), repr(texts), *(tensor for _, tensor in there))
    except NetworkError:  # the run refuses it, too, and knows by which key it was named
        return None
    except Exception as error:  # a user's code runs, which can raise anything: its tensors, or how it shows itself
        if is_of_memory(error):
            raise
        return f"unknown {uuid4()}"  # and so like nothing else
    finally:  # what a function draws, it draws when it is built to be used
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _code(network: str) -> str | None:
    """Of the file that a user's own network comes from, or of its module, if it is known by its name."""
    place, _, function = network.rpartition(":")
    if place.endswith(".py") or place in ("", "torchvision"):
        return _digest(Path(place))
    try:
        user_builder(place, function, None)
    except NetworkError:  # the run refuses it, too, and knows by which key it was named
        return None
    module = sys.modules[place]
    if module not in _SEEN:
        _SEEN[module] = _digest(Path(getattr(module, "__file__", None) or ""))
    return _SEEN[module]


def _digest(path: Path) -> str | None:
    """None for what is no file: nothing at all, or something that is read without an end."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
