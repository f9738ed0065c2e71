"""The time of one kind of layer over its two widths, read between measured points.

Kernels work on blocks of channels, and what is left over may cost as much as a block, or more than two: a depthwise
convolution of 8-bit integers takes twice as long with 152 channels as with 160. So a width is compared with those only
that leave the same remainder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxdistill.device.costs.probes import Widths

BLOCK = 16
"""Channels of a block: what the widest registers hold."""

# Points of an axis, as shares of the largest width: of whole blocks, and of widths with a remainder.
_SHARES, _SHARES_LEFT_OVER = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1), (1 / 4, 1 / 2, 1)

_Row = tuple[list[int], list[float]]


def axis(most: int, step: int = BLOCK) -> list[int]:
    """Widths at which a layer is measured that has `most` channels there now.

    Args:
        most: What is less than a block stays as it is: the colours of an image, or classes.
        step: Widths are whole multiples of it.
    """
    if most < BLOCK:
        return [most]
    points = {_up(most * share) for share in _SHARES}
    shares = _SHARES_LEFT_OVER if step >= BLOCK // 4 else _SHARES_LEFT_OVER[1:2]
    for left_over in range(step, BLOCK, step):
        points |= {_up(most * share) - BLOCK + left_over for share in shares}
    return sorted({point for point in points if point < most} | {most})


def pairs(inputs: Iterable[int], outputs: Iterable[int]) -> list[Widths]:
    """All pairs of two axes."""
    axis_out = list(outputs)
    return [(one, other) for one in inputs for other in axis_out]


@dataclass(frozen=True)
class Surface:
    """Times of one kind of layer.

    Attributes:
        points_ms: What was measured.
    """

    points_ms: Mapping[Widths, float]

    def time_ms(self, inputs: int, outputs: int) -> float:
        """The time of a layer: between the four measured points around it, and beyond the last ones in proportion.

        Layers of one width, as depthwise convolutions are, have been measured with as many inputs as outputs.
        """
        if (inputs, outputs) in self.points_ms:
            return self.points_ms[inputs, outputs]
        rows = self._rows[self._nearest_remainders(inputs, outputs)]
        if all(one == other for one, other in self.points_ms):
            places = sorted(rows)
            return _between(places, [rows[width][1][0] for width in places], outputs)
        places = _around(sorted(rows), inputs)
        return _between(places, [_between(*rows[width], outputs) for width in places], inputs)

    def covers(self, inputs: int, outputs: int, narrower: Iterable[Widths]) -> bool:
        """Whether layers can be read between points of the same remainders.

        Args:
            inputs: Channels that go in.
            outputs: Channels that come out.
            narrower: The widest ones of every remainder that are asked for, among others.
        """
        return all(self._reaches(*widths) for widths in [(inputs, outputs), *narrower])

    def _reaches(self, inputs: int, outputs: int) -> bool:
        if (inputs, outputs) in self.points_ms:
            return True
        rows = self._rows.get((inputs % BLOCK, outputs % BLOCK), {})
        wide = [max(widths) for width, (widths, _) in rows.items() if width >= inputs]
        return bool(wide) and outputs <= min(wide)

    @cached_property
    def _rows(self) -> dict[Widths, dict[int, _Row]]:
        """By the remainders of both widths, and by the width that goes in: widths that come out, and times."""
        rows: dict[Widths, dict[int, _Row]] = {}
        for (inputs, outputs), time_ms in sorted(self.points_ms.items()):
            row = rows.setdefault((inputs % BLOCK, outputs % BLOCK), {}).setdefault(inputs, ([], []))
            row[0].append(outputs)
            row[1].append(time_ms)
        return rows

    def _nearest_remainders(self, inputs: int, outputs: int) -> Widths:
        """Those of the widths, or else the next larger ones that were measured, of which whole blocks are the last."""
        wanted = (inputs % BLOCK, outputs % BLOCK)
        return min(
            self._rows, key=lambda one: sum((have - want) % BLOCK for have, want in zip(one, wanted, strict=True))
        )


def _around(places: Sequence[int], at: int) -> list[int]:
    """The two places between which it lies, or the last two; the only one."""
    if len(places) == 1:
        return list(places)
    index = min(max(1, int(np.searchsorted(places, at))), len(places) - 1)
    return list(places[index - 1 : index + 1])


def _between(places: Sequence[int], values: Sequence[float], at: int) -> float:
    """On the straight line through the two points around it, but never below half of the lower one."""
    if len(places) == 1:
        return values[0] * max(1.0, at / places[0])
    one, other = _around(places, at)
    first, last = values[places.index(one)], values[places.index(other)]
    return max(min(first, last) / 2, first + (last - first) * (at - one) / (other - one))


def _up(width: float) -> int:
    return -(-round(width) // BLOCK) * BLOCK
