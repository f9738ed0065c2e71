"""Fewer widths for networks whose choices are too entangled: where layers take the channels of many groups at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxdistill.planning.network import Choices
from onnxdistill.planning.problem import EntangledError, check_solvable

# With two widths, a group is left as it is or cut as far as may be; several cuts offer more.
_FEWEST = 2


def solvable(choices: Choices, scopes: Iterable[Sequence[str]]) -> Choices:
    """The choices, with as many widths as a plan can be found for.

    Groups that share a layer with two others or more lose every other width, those with the most first, until the best
    of all combinations can be found; with them, at last, the others.

    Args:
        choices: Of a network.
        scopes: The choices that each of its layers depends on.

    Raises:
        EntangledError: If even two widths a group are too many.
    """
    known = [tuple(scope) for scope in scopes]
    entangled = {choice for scope in known if len(scope) > _FEWEST for choice in scope}
    while True:
        try:
            check_solvable(choices.sizes, known)
            return choices
        except EntangledError:
            candidates = _thinnable(choices.widths, entangled) or _thinnable(choices.widths, choices.widths)
            if not candidates:
                raise
        most = max(len(choices.widths[name]) for name in candidates)
        thinner = {name: _every_other(choices.widths[name]) for name in candidates if len(choices.widths[name]) == most}
        choices = replace(choices, widths={**choices.widths, **thinner})


def _thinnable(widths: Mapping[str, Sequence[int]], names: Iterable[str]) -> list[str]:
    return [name for name in widths if name in set(names) and len(widths[name]) > _FEWEST]


def _every_other(widths: Sequence[int]) -> list[int]:
    """Half of them, the narrowest and the widest included."""
    places = np.linspace(0, len(widths) - 1, max(_FEWEST, (len(widths) + 1) // 2)).round().astype(int)
    return [widths[place] for place in places]
