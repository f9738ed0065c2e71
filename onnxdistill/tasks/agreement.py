"""An ONNX file without labels, judged by how far another one agrees with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from onnxdistill.data.images import Indices
from onnxdistill.data.samples import Samples
from onnxdistill.device.measuring.agreement import class_axis
from onnxdistill.device.session import Array, Session
from onnxdistill.errors import DataError, ModelFileError
from onnxdistill.tasks.base import Feeds, Metric, Runner, Score, Split

FEWEST_SAMPLES = 8
"""Two for every split that something is measured on."""

KEPT_BYTES = 2**29
"""The most that the float model's answers for a split may take; else it is run anew every time."""

_READ_AT_ONCE = 64
_RESAMPLINGS = 500


def fixed_batch(session: Session) -> int | None:
    """The number of samples that a model takes at once; None if any number.

    Raises:
        ModelFileError: If the first dimensions of its inputs are not those of a batch.
    """
    if flat := [port.name for port in session.inputs if not port.shape]:
        raise ModelFileError(
            f"{session.label} does not say that its input {flat[0]!r} has a dimension for the samples.",
            "Export the model with a batch dimension in every input.",
        )
    sizes = {port.shape[0] for port in session.inputs if isinstance(port.shape[0], int)}
    is_mixed = max(sizes, default=1) > 1 and any(isinstance(port.shape[0], str) for port in session.inputs)
    if len(sizes) > 1 or is_mixed:
        raise ModelFileError(
            f"{session.label} takes {', '.join(map(str, session.inputs))}: the first dimension of every input has to "
            "be that of the samples, and these differ.",
            "Export the model with a batch dimension in every input.",
        )
    return next(iter(sizes), None)


@dataclass(frozen=True)
class _Reading:
    """How an output is compared: by the largest value along an axis, or as it is."""

    kind: Literal["classes", "integers", "values"]
    axis: int = -1

    def answer(self, output: Array) -> Array:
        """What is kept of an output."""
        if self.kind != "classes":
            return output
        if not output.shape[self.axis]:  # as a detector's that finds nothing
            return np.full(tuple(np.delete(output.shape, self.axis)), -1, np.int32)
        answers: Array = output.argmax(self.axis).astype(np.int32)
        return answers

    def percent(self, part: float, whole: float) -> float:
        """The agreement that sums over samples come to, of what `_same` or `_squares` give."""
        if self.kind != "values":
            return 100.0 * part / whole if whole else 100.0
        if whole == 0:
            return 100.0 if part == 0 else 0.0
        return 100.0 * max(0.0, 1.0 - sqrt(part / whole))


def _same(expected: Array, given: Array) -> NDArray[np.bool_]:
    """Where two answers are equal: nowhere, if there are more places in one of them."""
    if expected.shape != given.shape:
        return np.zeros(max(expected.size, given.size, 1), np.bool_)
    return np.asarray(expected == given)


def _squares(expected: Array, given: Array) -> tuple[float, float]:
    """Sum of the squared differences, and of the squares that they are a share of; what is not finite is left out."""
    finite = np.isfinite(expected)
    wide = expected[finite].astype(np.float64)
    whole = float(np.square(wide).sum())
    if expected.shape != given.shape:
        return max(whole, 1.0), whole
    other = given[finite].astype(np.float64)
    return float(np.square(np.where(np.isfinite(other), other - wide, wide)).sum()), whole


class FloatAgreement:
    """See `Scoring`: agreement with a float model, in percent; the float model itself has 100.

    The agreement of an output with classes, see `class_axis`, is the share of places where the largest value is at the
    same class; of integers, the share of equal ones; and of other values what their relative root mean squared error
    leaves of 100 %. That of a model is the mean over its outputs.

    A half of the samples is for calibration, a quarter for validation, and a quarter for the test, at random.

    Args:
        samples: All of them.
        reference: The float model.
        compared: `classes`, or `values` where axes are none of classes.
        calibration: Samples for calibration, at the most.
        seed: Of the splits.

    Attributes:
        batch: Samples that the model takes at once; None if any number.

    Raises:
        DataError: If there are too few samples.
        ModelFileError: If the model does not run on them, or has no output to compare.
    """

    metric = Metric("float32 agreement", "%")
    measurable = True

    def __init__(
        self,
        samples: Samples,
        reference: Session,
        compared: Literal["classes", "values"],
        calibration: int,
        seed: int,
    ) -> None:
        self.batch = fixed_batch(reference)
        self._samples = samples
        self._reference = reference
        self._parts = split_samples(len(samples), calibration, self.batch or 1, seed)
        self._readings = self._read(reference.run(self.examples(self.batch or 1)), compared)
        self._answers: dict[Split, list[dict[str, Array]]] = {}

    def examples(self, count: int) -> Feeds:
        """So many samples of those for calibration, by input name; from the beginning again, if there are fewer."""
        part = self._parts["calibration"]
        return self._samples.fetch(part[np.arange(count) % len(part)])

    def calibration(self, batch_size: int) -> Iterator[Feeds]:
        """The samples for calibration as the model takes them, always the same ones in the same order."""
        return self._calls("calibration", self.batch or batch_size)

    def score(self, runner: Runner, split: Split, on_progress: Callable[[int, int], None] | None = None) -> Score:
        """The agreement with its interval: Wilson's of a share of samples, else by resampling (Efron 1979)."""
        size, count = self.batch or 1, len(self._parts[split])
        sums = np.zeros((count // size, len(self._readings), 2))
        hits: list[NDArray[np.bool_]] = []
        for call, (feeds, expected) in enumerate(self._expected(split, size)):
            given = self._answer(runner(feeds))
            for output, (name, reading) in enumerate(self._readings.items()):
                if reading.kind == "values":
                    sums[call, output] = _squares(expected[name], given[name])
                else:
                    hits.append(_same(expected[name], given[name]).ravel())
                    sums[call, output] = np.count_nonzero(hits[-1]), hits[-1].size
            if on_progress is not None:
                on_progress((call + 1) * size, count)
        value = self._percent(sums.sum(0))
        if len(self._readings) == 1 and hits and all(places.size == size for places in hits):
            correct = np.concatenate(hits)
            low, high = binomtest(int(correct.sum()), count).proportion_ci(method="wilson")
            return Score(value, (100.0 * low, 100.0 * high), count, correct=correct)
        return Score(value, self._resampled(sums), count)

    def describe_data(self) -> dict[str, dict[str, int | str]]:
        """See `Scoring.describe_data`."""
        return {
            str(name): {"images": len(part), "sha256": self._samples.digest(part)} for name, part in self._parts.items()
        }

    def _expected(self, split: Split, size: int) -> Iterator[tuple[Feeds, dict[str, Array]]]:
        """The samples of a split with what the float model says: kept from the first time, if that is not too much."""
        if split in self._answers:
            yield from zip(self._calls(split, size), self._answers[split], strict=True)
            return
        kept, calls = list[dict[str, Array]](), len(self._parts[split]) // size
        for feeds in self._calls(split, size):
            answer = self._answer(self._reference.run(feeds))
            if calls * sum(array.nbytes for array in answer.values()) <= KEPT_BYTES:
                kept.append(answer)
            yield feeds, answer
        if len(kept) == calls:
            self._answers[split] = kept

    def _calls(self, split: Split, size: int) -> Iterator[Feeds]:
        """The samples of a split, so many at once."""
        part = self._parts[split]
        step = max(1, _READ_AT_ONCE // size) * size
        for start in range(0, len(part), step):
            feeds = self._samples.fetch(part[start : start + step])
            for begin in range(0, len(part[start : start + step]), size):
                yield {name: array[begin : begin + size] for name, array in feeds.items()}

    def _read(self, outputs: Mapping[str, Array], compared: Literal["classes", "values"]) -> dict[str, _Reading]:
        readings = {}
        for name, output in outputs.items():
            kind = output.dtype.kind if isinstance(output, np.ndarray) else "O"
            axis = class_axis(output.shape) if kind == "f" and compared == "classes" else None
            if axis is not None:
                readings[name] = _Reading("classes", axis)
            elif kind in "fiub":
                readings[name] = _Reading("values" if kind == "f" else "integers")
        if not readings:
            raise ModelFileError(
                f"{self._reference.label} has no output of numbers that could be compared.",
                "Export the model without what makes texts or tables of them.",
            )
        return readings

    def _answer(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: reading.answer(outputs[name]) for name, reading in self._readings.items()}

    def _percent(self, sums: NDArray[np.float64]) -> float:
        """The mean over the outputs, of sums `[outputs, 2]`."""
        return float(np.mean([one.percent(*row) for one, row in zip(self._readings.values(), sums, strict=True)]))

    def _resampled(self, sums: NDArray[np.float64]) -> tuple[float, float]:
        """95 % interval, of sums `[calls, outputs, 2]`."""
        rng = np.random.default_rng(0)
        drawn = (sums[rng.integers(len(sums), size=len(sums))].sum(0) for _ in range(_RESAMPLINGS))
        low, high = np.percentile([self._percent(one) for one in drawn], (2.5, 97.5))
        return float(low), float(high)


def split_samples(count: int, calibration: int, batch: int, seed: int) -> dict[Split, Indices]:
    """Draws disjoint parts at random: half of the samples, a quarter and a quarter.

    Args:
        count: Number of samples.
        calibration: Of the half, at the most.
        batch: Every part is a multiple of this.
        seed: Decides which.

    Returns:
        Sorted indices of every part.

    Raises:
        DataError: If there are too few.
    """
    fewest = max(FEWEST_SAMPLES, 4 * batch)
    if count < fewest:
        taken = "" if batch == 1 else f", since the model takes {batch} at once"
        raise DataError(
            f"There are {count} samples, and at least {fewest} are needed{taken}: half of them are for calibration, a "
            "quarter decides, and a quarter is reported on.",
            "Give more samples.",
        )
    order = np.random.default_rng(seed).permutation(count)
    quarter = count // 4 // batch * batch
    half = max(1, min(calibration, count // 2) // batch) * batch
    cuts = np.split(order, [quarter, 2 * quarter, 2 * quarter + half])
    names: tuple[Split, ...] = ("validation", "test", "calibration")
    parts = {name: np.sort(part) for name, part in zip(names, cuts, strict=False)}
    return {name: parts[name] for name in ("calibration", "validation", "test")}
