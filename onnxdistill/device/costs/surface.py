"""The time of one kind of layer over its two widths, read between measured points.

Kernels work on blocks of channels, and what is left over may cost as much as a block, or more than two: a depthwise
convolution of 8-bit integers takes twice as long with 152 channels as with 160. So a width is compared with those only
that leave the same remainder. Layers in groups compute each group apart, and are read by all of their widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxdistill.device.costs.layers import DEPTHWISE
from onnxdistill.device.costs.probes import Widths

BLOCK = 16
"""Channels of a block: what the widest registers hold."""

# Points of an axis, as shares of the largest width: of whole blocks, and of widths with a remainder.
_SHARES, _SHARES_LEFT_OVER = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1), (1 / 4, 1 / 2, 1)

_Row = tuple[list[int], list[float]]
_Rows = dict[int, _Row]


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


def grouped_axis(most: int, groups: int) -> list[int]:
    """Widths at which a layer in groups is measured: whole numbers of channels in each.

    Args:
        most: Channels that there are now, in all groups together.
        groups: How many there are.
    """
    each = most // groups
    return sorted({max(1, round(each * share)) * groups for share in _SHARES})


def pairs(inputs: Iterable[int], outputs: Iterable[int]) -> list[Widths]:
    """All pairs of two axes."""
    axis_out = list(outputs)
    return [(one, other) for one in inputs for other in axis_out]


@dataclass(frozen=True)
class Surface:
    """Times of one kind of layer.

    Attributes:
        points_ms: What was measured.
        groups: Of such layers, as `LayerKind` has it.
    """

    points_ms: Mapping[Widths, float]
    groups: int = 1

    def time_ms(self, inputs: int, outputs: int) -> float:
        """The time of a layer: between the four measured points around it, and beyond the last ones in proportion.

        Depthwise layers have been measured with as many inputs as outputs.
        """
        if (inputs, outputs) in self.points_ms:
            return self.points_ms[inputs, outputs]
        return self._read(self._nearest_remainders(inputs, outputs), inputs, outputs)

    def covers(self, inputs: int, outputs: int, narrower: Iterable[Widths]) -> bool:
        """Whether layers can be read between points of the same remainders.

        Args:
            inputs: Channels that go in.
            outputs: Channels that come out.
            narrower: The widest ones of every remainder that are asked for, among others.
        """
        return all(self._reaches(*widths) for widths in [(inputs, outputs), *narrower])

    def _read(self, remainders: Widths, inputs: int, outputs: int) -> float:
        """The time of a layer from points of these remainders."""
        rows = self._rows[remainders]
        if self.groups == DEPTHWISE:
            times = {width: row[1][0] for width, row in rows.items()}
            return self._along(times, outputs, lambda width: (width, width), remainders, [(0, 0)])
        around = _around(_bounding(rows, inputs, outputs), inputs)
        times = {width: self._in_row(remainders, width, outputs) for width in around}
        whole = [(0, remainders[1]), (0, 0)]
        return self._along(times, inputs, lambda width: (width, outputs), remainders, whole)

    def _in_row(self, remainders: Widths, inputs: int, outputs: int) -> float:
        """The time of a layer with as many inputs as were measured."""
        times = dict(zip(*self._rows[remainders][inputs], strict=True))
        whole = [(remainders[0], 0), (0, 0)]
        return self._along(times, outputs, lambda width: (inputs, width), remainders, whole)

    def _along(
        self,
        times_ms: Mapping[int, float],
        at: int,
        layer: Callable[[int], Widths],
        own: Widths,
        whole: Sequence[Widths],
    ) -> float:
        """The time at a width, from those at others.

        Beyond them it goes as it does in whole blocks, where these reach so far, or if it was measured at one width
        only; else in a straight line.

        Args:
            times_ms: By width.
            at: The width.
            layer: The widths of a layer that has such a width.
            own: Remainders of the layers.
            whole: Remainders of which this width leaves none, the best first.
        """
        places = sorted(times_ms)
        nearest = min(places, key=lambda place: abs(place - at))
        if not places[0] <= at <= places[-1]:
            for like in whole:
                lies_between = self._spans(like, layer(nearest), layer(at))
                if lies_between or (len(places) == 1 and like != own and self._has_line(like, layer)):
                    share = _share(self._read(like, *layer(at)), self._read(like, *layer(nearest)))
                    return times_ms[nearest] * share
        return _between(places, [times_ms[place] for place in places], at)

    def _spans(self, remainders: Widths, *layers: Widths) -> bool:
        """Whether layers lie between points of these remainders, so that they can be read from those alone."""
        rows = self._rows.get(remainders, {})
        if self.groups == DEPTHWISE:
            return bool(rows) and all(min(rows) <= outputs <= max(rows) for _, outputs in layers)
        return all(self._lies_within(rows, *layer) for layer in layers)

    def _has_line(self, remainders: Widths, layer: Callable[[int], Widths]) -> bool:
        """Whether there are two points of these remainders in the direction in which such layers differ."""
        rows = self._rows.get(remainders, {})
        by_inputs = layer(1)[0] != layer(2)[0]
        return len(rows) > 1 if by_inputs else any(len(widths) > 1 for widths, _ in rows.values())

    def _lies_within(self, rows: _Rows, inputs: int, outputs: int) -> bool:
        found = [width for width, (widths, _) in rows.items() if widths[0] <= outputs <= widths[-1]]
        return bool(found) and min(found) <= inputs <= max(found)

    def _reaches(self, inputs: int, outputs: int) -> bool:
        if (inputs, outputs) in self.points_ms:
            return True
        rows = self._rows.get((inputs % self._block, outputs % self._block), {})
        wide = [max(widths) for width, (widths, _) in rows.items() if width >= inputs]
        return bool(wide) and outputs <= min(wide)

    @property
    def _block(self) -> int:
        return BLOCK if self.groups in (1, DEPTHWISE) else 1

    @cached_property
    def _rows(self) -> dict[Widths, _Rows]:
        """By the remainders of both widths, and by the width that goes in: widths that come out, and times."""
        rows: dict[Widths, _Rows] = {}
        for (inputs, outputs), time_ms in sorted(self.points_ms.items()):
            row = rows.setdefault((inputs % self._block, outputs % self._block), {}).setdefault(inputs, ([], []))
            row[0].append(outputs)
            row[1].append(time_ms)
        return rows

    def _nearest_remainders(self, inputs: int, outputs: int) -> Widths:
        """Those of the widths, or else the next larger ones that were measured, of which whole blocks are the last."""
        block = self._block
        wanted = (inputs % block, outputs % block)
        return min(
            self._rows, key=lambda one: sum((have - want) % block for have, want in zip(one, wanted, strict=True))
        )


def _bounding(rows: _Rows, inputs: int, outputs: int) -> list[int]:
    """The inputs of rows to read from: those that reach the outputs, if some do on both sides.

    A row that doesn't, of a narrower layer that was measured as well, would be read far beyond its end.
    """
    tests: list[Callable[[list[int]], bool]] = [
        lambda widths: widths[0] <= outputs <= widths[-1],
        lambda widths: outputs <= widths[-1],
    ]
    for reaches in tests:
        found = sorted(width for width, (widths, _) in rows.items() if reaches(widths))
        if found and found[0] <= inputs <= found[-1]:
            return found
    return sorted(rows)


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


def _share(time_ms: float, whole_ms: float) -> float:
    """One where a clock has seen nothing."""
    return time_ms / whole_ms if min(time_ms, whole_ms) > 0 else 1.0


def _up(width: float) -> int:
    return -(-round(width) // BLOCK) * BLOCK
