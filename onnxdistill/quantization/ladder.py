"""The accuracy ladder: ways to lose less by int8, from cheap to costly, each measured, and no more than needed.

The first rungs cost no latency, and are climbed until what is lost is within the limit. Those that do, or that take a
training, are for what is lost for sure.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, get_args

from onnxdistill.quantization.ranges import Method
from onnxdistill.quantization.saturation import saturating_layers
from onnxdistill.quantization.sensitivity import LayerLoss, rank_layers
from onnxdistill.quantization.workshop import Calibration, Equalization, Form, Workshop

_EQUALIZATIONS: tuple[Equalization, ...] = ("exact", "relu6 as relu")


@dataclass(frozen=True)
class Loss:
    """What int8 costs.

    Attributes:
        points: Of the metric on validation, below the float model; negative if int8 is better.
        low: Lower end of a 95 % confidence interval.
    """

    points: float
    low: float


@dataclass(frozen=True)
class Rung:
    """One way to lose less that was tried.

    Attributes:
        name: What was done, in words.
        loss: What int8 costs then; None if it could not be done.
        kept: Whether less was lost than ever before.
        seconds: How long it took.
        note: Why it could not be done, or why it was not enough to lose less.
    """

    name: str
    loss: Loss | None
    kept: bool
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Held:
    """What was reached.

    Attributes:
        form: How the file was made; it may have been trained further.
        path: The file.
        loss: What it costs.
    """

    form: Form
    path: Path
    loss: Loss


class Measures(Protocol):
    """What decides on the ladder: measured, by somebody who knows the data and the target."""

    def loss(self, path: Path) -> Loss:
        """What an int8 file costs."""
        ...

    def refuses(self, loss: Loss) -> bool:
        """Whether a file that costs so much must not ship. A loss that may be chance is no reason."""
        ...

    def is_faster(self, path: Path) -> bool:
        """Whether an int8 file is measurably faster than the float model."""
        ...


Finetune = Callable[[Path, Path], str]
"""Trains an int8 file and writes the result to the second path. Returns why it could not, or nothing."""


class Ladder:
    """Climbs until an int8 model loses no more than it may.

    Args:
        workshop: Makes forms of the float model.
        calibration: Samples for what is decided without labels.
        measures: Says what a file costs.
        limit: Points of the metric on validation that int8 may cost.
        folder: For files that are tried.
        on_progress: Is told what is tried.

    Attributes:
        rungs: What was tried, in order of time.
    """

    def __init__(
        self,
        workshop: Workshop,
        calibration: Calibration,
        measures: Measures,
        limit: float,
        folder: Path,
        on_progress: Callable[[str], None],
    ) -> None:
        self._workshop = workshop
        self._calibration = calibration
        self._measures = measures
        self._limit = limit
        self._folder = folder
        self._on_progress = on_progress
        self._numbers = itertools.count(1)
        self.rungs: list[Rung] = []

    def climb(self, form: Form, *, any_ranges: bool, finetune: Finetune | None = None) -> Held:
        """Climbs from a form.

        Args:
            form: What the ladder stands on.
            any_ranges: Whether the other methods for ranges may be taken.
            finetune: Trains the best form further, as the last rung; none if left out.

        Returns:
            What costs least of all that was tried.
        """
        best = self._try("as it is", form, None)
        for name, change in self._changes(form, any_ranges):
            if self._is_enough(best):
                return best
            best = self._better(self._try(name, change(best.form), best), best)
        if not self._is_enough(best) and form.scheme.weight_bits == 7:
            best = self._wide(best)
        if self._measures.refuses(best.loss):
            best = self._mixed(best)
        if self._measures.refuses(best.loss) and finetune is not None:
            best = self._finetuned(best, finetune)
        return best

    def _changes(self, form: Form, any_ranges: bool) -> Iterator[tuple[str, Callable[[Form], Form]]]:
        if any_ranges:
            for method in get_args(Method):
                if method != form.ranges:
                    yield f"ranges by {method}", partial(replace, ranges=method)
        yield "biases corrected", partial(replace, corrected=True)
        for equalization in _EQUALIZATIONS:
            if self._workshop.equalizes(equalization):
                yield f"channels equalized, {equalization}", partial(replace, equalization=equalization)
        yield "weights rounded for the outputs of their layer", partial(replace, rounded=True)

    def _wide(self, best: Held) -> Held:
        """Weights of 8 bits where those of 7 were chosen, if it can be proved that no sum overflows 16 bits."""
        started = time.monotonic()
        form = replace(best.form, scheme=replace(best.form.scheme, weight_bits=8))
        if saturating := saturating_layers(self._workshop.make(form).model):
            note = f"sums of {len(saturating)} layers could overflow 16 bits on this processor"
            self.rungs.append(Rung("8-bit weights", None, False, time.monotonic() - started, note))
            return best
        return self._better(self._try("8-bit weights", form, best), best)

    def _mixed(self, best: Held) -> Held:
        """Operators go back to float: twice as many each time until it is enough, then as few as are enough."""
        layers = rank_layers(self._workshop, best.form, self._calibration, self._show_layers)
        form, too_few, enough, count = best.form, 0, len(layers) + 1, 1
        while too_few < count < enough:
            held = self._try(f"{count} of {len(layers)} operators in float", _with_float(form, layers[:count]), best)
            if self._better(held, best) is held and not self._measures.is_faster(held.path):
                self.rungs[-1] = replace(self.rungs[-1], kept=False, note="not faster than float32")
                enough = count  # more would be slower still
            elif not self._measures.refuses(held.loss):
                best, enough = held, count
            else:
                best, too_few = self._better(held, best), count
            count = min(2 * count, len(layers)) if enough > len(layers) else (too_few + enough) // 2
        return best

    def _finetuned(self, best: Held, finetune: Finetune) -> Held:
        started = time.monotonic()
        self._on_progress("training with int8")
        path = self._fresh()
        refusal = finetune(best.path, path)
        if refusal:
            self.rungs.append(Rung("trained with int8", None, False, time.monotonic() - started, refusal))
            return best
        return self._better(self._judged("trained with int8", best.form, path, best, started), best)

    def _try(self, name: str, form: Form, best: Held | None) -> Held:
        started = time.monotonic()
        self._on_progress(name)
        path = self._fresh()
        self._workshop.write(form, path)
        return self._judged(name, form, path, best, started)

    def _judged(self, name: str, form: Form, path: Path, best: Held | None, started: float) -> Held:
        held = Held(form, path, self._measures.loss(path))
        kept = best is None or self._better(held, best) is held
        self.rungs.append(Rung(name, held.loss, kept, time.monotonic() - started))
        return held

    def _better(self, held: Held, best: Held) -> Held:
        return held if held.loss.points < best.loss.points else best

    def _is_enough(self, held: Held) -> bool:
        return held.loss.points <= self._limit

    def _fresh(self) -> Path:
        return self._folder / f"rung-{next(self._numbers)}.onnx"

    def _show_layers(self, done: int, total: int) -> None:
        self._on_progress(f"operators in float: {done + 1} of {total}")


def _with_float(form: Form, layers: Sequence[LayerLoss]) -> Form:
    nodes = form.scheme.float_nodes.union(*(layer.nodes for layer in layers))
    return replace(form, scheme=replace(form.scheme, float_nodes=nodes))
