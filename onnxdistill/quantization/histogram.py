"""Histograms of the values of a tensor, filled batch by batch."""

from __future__ import annotations

import functools
import math
import pickle
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxdistill.errors import ModelFileError

HALF = 8192
"""Bins of a histogram on either side of zero. The side of the largest magnitude uses more than half of its bins."""

# 2 to the power of this, and of its negative, are normal numbers in float32.
_LEAST_EXPONENT = -126
# Values whose bins are found before they are counted: they stay in the processor's nearest cache but one.
_PIECE = 1 << 14
# Values that are copies of others of another type.
_CONVERTED = 1 << 20
# Behind a ReLU one value in two is zero. Adding to one count again and again waits each time for the last; counts in
# turns do not.
_TURNS = 4
_ALL_BUT_SIGN = 0x7FFFFFFF
# The least and the largest of no value, in the order of `_keys`.
_NOTHING = np.array([2**31 - 1, -(2**31)], np.int32)


class Histogram:
    """How many values of a tensor lie in bins of equal width, on both sides of zero.

    The width is a power of two and doubles as often as a value falls outside: neighbours are then joined. Dividing by a
    power of two and rounding down are exact in floating point, so that a value is counted in the same bin whether it
    comes before or after. The counts depend neither on the order of the values nor on how they are cut into batches
    (but for negative ones that underflow when they are divided by the width, and count as zero).

    Args:
        name: The tensor's, for messages.

    Attributes:
        counts: `[2 * HALF]`; bin `i` has the values from `(i - HALF) * width` up to the next bin's.
        minimum: The least value so far; infinity before the first.
        maximum: The largest value so far; minus infinity before the first.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.counts: NDArray[np.int64] = np.zeros(2 * HALF, np.int64)
        self.minimum = math.inf
        self.maximum = -math.inf
        self._exponent = _LEAST_EXPONENT
        self._adding = threading.Lock()

    @classmethod
    def of(cls, name: str, counts: NDArray[np.int64], minimum: float, maximum: float, exponent: int) -> Histogram:
        """A histogram with what another one came to; see its attributes."""
        made = cls(name)
        made.counts[:] = counts
        made.minimum, made.maximum, made._exponent = minimum, maximum, exponent
        return made

    @property
    def unbounded(self) -> bool:
        """Whether a value was infinite, as where a mask of attention is minus infinity: there is no range then."""
        return self.minimum == -math.inf and self.maximum == math.inf

    @property
    def exponent(self) -> int:
        """The width of a bin is 2 to the power of this."""
        return self._exponent

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self._exponent)

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def add(self, values: NDArray[np.generic]) -> None:
        """Counts values, of float32 or float16 and of any shape; with an infinite one, none at all count from then on.

        Raises:
            ModelFileError: If one of them is NaN; the message names the tensor.
        """
        if values.size == 0:
            return
        flat = np.ravel(np.asarray(values))
        step = flat.size if flat.dtype == np.float32 else _CONVERTED
        with self._adding:
            for start in range(0, flat.size, step):
                part, done = flat[start : start + step].astype(np.float32, copy=False), 0
                if self.unbounded:
                    return
                while (done := self._count_from(done, part)) < part.size:
                    magnitude = self._magnitude(part[done : done + _PIECE])
                    if math.isinf(magnitude):
                        self.counts[:] = 0
                        self.minimum, self.maximum = -math.inf, math.inf
                        return
                    self._widen(magnitude)

    def magnitudes(self) -> Histogram:
        """The histogram of the absolute values."""
        folded = Histogram.of(self.name, np.zeros_like(self.counts), math.inf, -math.inf, self._exponent)
        folded.counts[HALF:] = self.counts[HALF:] + self.counts[HALF - 1 :: -1]
        if self.maximum >= self.minimum:
            folded.maximum = max(-self.minimum, self.maximum)
            folded.minimum = max(self.minimum, -self.maximum, 0.0)
        return folded

    def _magnitude(self, values: NDArray[np.float32]) -> float:
        with np.errstate(invalid="ignore"):
            low, high = float(values.min()), float(values.max())
        if math.isnan(low):
            raise ModelFileError(
                f"The tensor {self.name!r} has values that are no number (NaN), and so has no range to quantize it by.",
                "Check the calibration samples for such values, and the weights.",
            )
        return max(-low, high)

    def _widen(self, magnitude: float) -> None:
        if magnitude == 0:
            return
        # magnitude < HALF * 2 ** exponent, and at least half of that.
        exponent = math.frexp(magnitude)[1] - (HALF.bit_length() - 1)
        for _ in range(min(exponent - self._exponent, HALF.bit_length())):
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[HALF // 2 : -HALF // 2] = joined
        self._exponent = max(self._exponent, exponent)

    def _count_from(self, start: int, values: NDArray[np.float32]) -> int:
        """Counts values from one on, until there are some that no bin is for; returns the place of the next one."""
        with np.errstate(over="ignore"):  # beyond the largest number there is infinity
            limit, scale = np.float32(HALF * self.width), math.ldexp(1.0, -self._exponent)
        bits, extremes = values.view(np.int32), _NOTHING.copy()
        collected = False
        try:
            done = _compiled().count(
                values, bits, start, np.float32(scale), _keys(limit), _SCRATCH.bins, _SCRATCH.turns, extremes
            )
            if done > start:
                low, high = map(float, _values(extremes))
                self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
                # The bin of zero is among them: there goes what underflows.
                first, last = min(math.floor(low * scale), 0) + HALF, max(math.floor(high * scale), 0) + HALF
                _compiled().collect(_SCRATCH.turns, self.counts, first, last + 1)
            collected = True
        finally:
            if not collected:  # interrupted: nothing of it may be left for the next one
                _SCRATCH.turns[:] = 0
        return done


class _Scratch(threading.local):
    """Every thread's own room: fresh memory would be given back and faulted in again for each tensor."""

    def __init__(self) -> None:
        self.bins = np.empty(_PIECE, np.uint32)
        self.turns = np.zeros((_TURNS, 2 * HALF), np.int64)


_SCRATCH = _Scratch()


def _keys(values: NDArray[np.float32] | np.float32) -> NDArray[np.int32]:
    """Integers in the order of the values; NaN is beyond the infinities."""
    bits = np.asarray(values).view(np.int32)
    return bits ^ ((bits >> 31) & _ALL_BUT_SIGN)


def _values(keys: NDArray[np.int32]) -> NDArray[np.float32]:
    """The inverse of `_keys`."""
    return (keys ^ ((keys >> 31) & _ALL_BUT_SIGN)).view(np.float32)


class _Compiled(NamedTuple):
    count: Callable[..., int]
    collect: Callable[..., None]


_COMPILING = threading.Lock()


def _compiled() -> _Compiled:
    """What follows, as machine code, made when first asked for."""
    with _COMPILING:
        return _made()


@functools.cache
def _made() -> _Compiled:
    # Takes as long to import as all of the rest.
    import numba
    from numba import types

    values = types.Array(types.float32, 1, "C", readonly=True)  # which those are that a session lends
    bits = types.Array(types.int32, 1, "C", readonly=True)
    turns, counts, place = types.int64[:, ::1], types.int64[::1], types.int64
    signatures = (
        place(values, bits, place, types.float32, types.int32, types.uint32[::1], turns, types.int32[::1]),
        types.void(turns, counts, place, place),
    )

    def made(cache: bool) -> _Compiled:
        functions = zip(signatures, (_count, _collect), strict=True)
        return _Compiled(*(numba.njit(signature, nogil=True, cache=cache)(plain) for signature, plain in functions))

    try:
        return made(cache=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError):
        # There is no place to keep it, or no room, or what is kept is damaged.
        return made(cache=False)


def _count(
    values: NDArray[np.float32],
    bits: NDArray[np.int32],
    start: int,
    scale: np.float32,
    limit: np.int32,
    bins: NDArray[np.uint32],
    turns: NDArray[np.int64],
    extremes: NDArray[np.int32],
) -> int:
    """Counts in `turns` from a value on, piece by piece up to one that has a value from `limit` on, on either side.

    `limit` and the least and the largest value, `extremes`, are `_keys`, by which NaN is beyond any limit. A piece
    comes from the memory once. What nothing holds up is in loops of its own, which are done for sixteen values at
    once; no index can be negative, or each would be checked for counting from the end.

    Returns:
        The place of the first value that was not counted.
    """
    while start < values.size:
        piece, same = values[start : start + bins.size], bits[start : start + bins.size]
        low, high = extremes[0], extremes[1]
        for i in range(piece.size):
            key = np.int32(same[i] ^ ((same[i] >> np.int32(31)) & np.int32(_ALL_BUT_SIGN)))
            low = key if key < low else low
            high = key if key > high else high
        if high >= limit or low <= -limit - 1:
            return start
        extremes[0], extremes[1] = low, high
        for i in range(piece.size):
            bins[i] = np.uint32(np.int32(np.floor(piece[i] * scale)) + np.int32(HALF))
        even = piece.size - piece.size % _TURNS
        for i in range(0, even, _TURNS):
            for turn in range(_TURNS):
                turns[turn, np.uint64(bins[i + turn])] += 1
        for i in range(even, piece.size):
            turns[0, np.uint64(bins[i])] += 1
        start += piece.size
    return start


def _collect(turns: NDArray[np.int64], counts: NDArray[np.int64], first: int, end: int) -> None:
    """Adds `turns`, from bin `first` to the one before `end`, to `counts`, and sets them to zero."""
    for turn in range(_TURNS):
        for i in range(first, end):
            counts[i] += turns[turn, i]
            turns[turn, i] = 0
