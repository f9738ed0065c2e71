"""How many channels stay, and which."""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import ceil, gcd

import numpy as np
from numpy.typing import NDArray

from onnxdistill.graph.importance import Scores
from onnxdistill.graph.labels import ChannelAnalysis, ChannelGroup


def uniform_widths(
    analysis: ChannelAnalysis, ratio: float, multiple_of: int, minimum: int, skip: list[str]
) -> dict[str, int]:
    """The same share of every group that may be cut.

    Args:
        analysis: Channel groups of the network.
        ratio: Share of the channels to remove.
        multiple_of: Widths of the producing layers are rounded up to a multiple: latency goes by steps.
        minimum: No layer gets narrower.
        skip: Names of groups to leave alone; `*` matches anything.

    Returns:
        Channels to keep, for every group that gets narrower, by name.
    """
    widths: dict[str, int] = {}
    for group in analysis.groups:
        if group.frozen or any(fnmatchcase(group.name, pattern) for pattern in skip):
            continue
        kept = _rounded(group, ratio, multiple_of, minimum)
        if kept < group.size:
            widths[group.name] = kept
    return widths


def _rounded(group: ChannelGroup, ratio: float, multiple_of: int, minimum: int) -> int:
    """In channels of the group; the multiple and the minimum are in channels of the layer."""
    each = group.indices_per_channel
    step = multiple_of // gcd(multiple_of, each)
    # 1e-9: a share such as 0.3 of 10 has to come to 7, not to 8, whatever binary fractions say.
    wanted = max((1 - ratio) * group.size - 1e-9, minimum / each)
    return min(group.size, ceil(wanted / step) * step)


def most_important(scores: Scores, widths: dict[str, int]) -> dict[str, NDArray[np.int64]]:
    """The channels with the highest scores, in ascending order; ties go to the first."""
    return {
        name: np.sort(np.argsort(-scores[name].numpy(), kind="stable")[:width]).astype(np.int64)
        for name, width in widths.items()
    }
