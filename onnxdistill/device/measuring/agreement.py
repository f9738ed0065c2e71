"""How far two models that should compute the same do so, on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np

from onnxdistill.device.measuring.openings import Feeds
from onnxdistill.device.session import Array, Port, Session
from onnxdistill.errors import UsageError

# Items, channels, height and width: the scores of a segmentation, for example.
_MAP_DIMENSIONS = 4


@dataclass(frozen=True)
class Agreement:
    """One output of a model beside the same output of the baseline.

    Attributes:
        model: Name of the model.
        baseline: Name of the one that it is compared with.
        output: Name of the output.
        samples: Items that both were run on.
        max_absolute: Largest difference of two values; infinite where only one of them is a finite number.
        max_relative: The same, as a share of the largest value of the baseline.
        argmax_percent: How often the largest value along the axis of the classes is at the same place, see
            `class_axis`; None where there is no such axis.
    """

    model: str
    baseline: str
    output: str
    samples: int
    max_absolute: float
    max_relative: float
    argmax_percent: float | None

    def __str__(self) -> str:
        same = "" if self.argmax_percent is None else f", the same argmax in {self.argmax_percent:.4g} %"
        return (
            f"{self.output} of {self.model} and {self.baseline}, {self.samples} items: they differ by up to "
            f"{self.max_absolute:.3g}, {self.max_relative:.2%} of the largest value{same}"
        )

    def to_json(self) -> dict[str, Any]:
        """The attributes by name; an infinite difference is None."""
        differences = {"max_absolute": self.max_absolute, "max_relative": self.max_relative}
        return {**self.__dict__, **{name: one if isfinite(one) else None for name, one in differences.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Agreement:
        """The inverse of `to_json`."""
        names = ("max_absolute", "max_relative")
        return cls(**{**data, **{name: inf if data[name] is None else data[name] for name in names}})


def agreements(reference: tuple[str, Session], other: tuple[str, Session], inputs: Iterable[Feeds]) -> list[Agreement]:
    """Runs two models on the same inputs and compares each output.

    Args:
        reference: Name and session of the baseline.
        other: Name and session of the model.
        inputs: What both are run on, one after the other.

    Returns:
        One for every output of numbers, in the order of the baseline's.

    Raises:
        UsageError: If they take different inputs, or have outputs of different names or shapes.
    """
    (baseline, first), (model, second) = reference, other
    check_comparable(first, second)
    numeric = {port.name for port in second.outputs if _is_numeric(port)}
    found = {
        port.name: _Compared(model, baseline, port.name)
        for port in first.outputs
        if _is_numeric(port) and port.name in numeric
    }
    for feeds in inputs:
        expected, given = first.run(feeds), second.run(feeds)
        for name, compared in found.items():
            compared.add(expected[name], given[name])
    return [compared.agreement() for compared in found.values()]


def check_comparable(first: Session, second: Session) -> None:
    """Makes sure that two models take the same inputs and have outputs of the same names.

    Raises:
        UsageError: If they do not.
    """
    for kind, ports, others in (("inputs", first.inputs, second.inputs), ("outputs", first.outputs, second.outputs)):
        by_name = {port.name: port for port in others}
        if {port.name for port in ports} != by_name.keys() or not all(_fit(port, by_name[port.name]) for port in ports):
            raise UsageError(
                f"The outputs of {first.label} and {second.label} cannot be compared: their {kind} are "
                f"{', '.join(sorted(map(str, ports)))} and {', '.join(sorted(map(str, others)))}.",
                "Compare models that were exported alike.",
            )


def _fit(port: Port, other: Port) -> bool:
    """Whether there is a tensor that is both; what is no tensor of numbers is not compared."""
    if port.dtype is None or other.dtype is None:
        return True
    sizes = zip(port.shape, other.shape, strict=False)
    return len(port.shape) == len(other.shape) and all(
        one == two or isinstance(one, str) or isinstance(two, str) for one, two in sizes
    )


def _is_numeric(port: Port) -> bool:
    """Whether it is a tensor, and not one of texts."""
    return port.dtype is not None and port.dtype.kind in "fiub"


class _Compared:
    """What is known of an output, batch by batch: outputs may be large, and are not kept."""

    def __init__(self, model: str, baseline: str, output: str) -> None:
        self._model, self._baseline, self._output = model, baseline, output
        self._absolute = self._scale = 0.0
        self._same = self._places = self._samples = 0

    def add(self, expected: Array, given: Array) -> None:
        """What the baseline gives, and what the model gives.

        Raises:
            UsageError: If their shapes differ.
        """
        if expected.shape != given.shape:
            raise UsageError(
                f"The output {self._output!r} of {self._model} is {list(given.shape)}, and that of {self._baseline} "
                f"{list(expected.shape)}.",
                "Only outputs of the same shape can be compared.",
            )
        if not expected.size:
            return
        self._samples += expected.shape[0] if expected.ndim else 1
        wide, other = expected.astype(np.float64), given.astype(np.float64)
        self._absolute = max(self._absolute, _largest_difference(wide, other))
        finite = wide[np.isfinite(wide)]
        self._scale = max(self._scale, float(np.abs(finite).max()) if finite.size else 0.0)
        classes = class_axis(expected.shape)
        if classes is not None:
            hits = wide.argmax(classes) == other.argmax(classes)
            self._same, self._places = self._same + int(hits.sum()), self._places + hits.size

    def agreement(self) -> Agreement:
        """Of all that was added."""
        return Agreement(
            model=self._model,
            baseline=self._baseline,
            output=self._output,
            samples=self._samples,
            max_absolute=self._absolute,
            max_relative=self._absolute / self._scale if self._scale else (0.0 if self._absolute == 0 else inf),
            argmax_percent=100 * self._same / self._places if self._places else None,
        )


def class_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of an output that has a value for every class; None where there is none, or where it has one value.

    It is the second one of maps (four dimensions and more), else the last.
    """
    axis = 1 if len(shape) >= _MAP_DIMENSIONS else -1
    return axis if len(shape) > 1 and shape[axis] > 1 else None


def _largest_difference(expected: Array, given: Array) -> float:
    # Equal infinities, or a NaN on both sides, are no difference; their subtraction would say so.
    unequal = ~((expected == given) | (np.isnan(expected) & np.isnan(given)))
    if not unequal.any():
        return 0.0
    differences = np.abs(expected[unequal] - given[unequal])
    return float("inf") if np.isnan(differences).any() else float(differences.max())
