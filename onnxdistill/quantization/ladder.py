"""The accuracy ladder: ways to lose less by int8, from cheap to costly, each measured, and no more than needed.

The first rungs cost no latency, and are climbed until what is lost is within the limit. Those that do, or that take a
training, are for what is lost for sure.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, get_args

import onnx

from onnxdistill.quantization.ranges import Method
from onnxdistill.quantization.saturation import saturating_layers
from onnxdistill.quantization.sensitivity import rank_operators
from onnxdistill.quantization.workshop import Equalization, Form, Workshop

_ROUNDING = 1e-9
_SLOWER = "slower than its limit"
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
        kept: Whether it went on from there: less was lost than before, or little enough with fewer operators in float;
            or nothing else was accurate enough.
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

    def may_be_chance(self, loss: Loss) -> bool:
        """Whether a file that is refused may be accurate enough after all, which is measured before it ships."""
        ...

    def is_faster(self, path: Path) -> bool:
        """Whether an int8 file is measurably faster than the float model."""
        ...

    def keeps_speed(self, path: Path) -> bool:
        """Whether a file is as fast as it has to be."""
        ...


Finetune = Callable[[Path, Path], str]
"""Trains an int8 file and writes the result to the second path. Returns why it could not, or nothing."""

Remembered = Callable[[str, Callable[[], Any]], Any]
"""What was decided under a key before a run was ended, or else what the function gives; plain values for JSON."""


def anew(_: str, decide: Callable[[], Any]) -> Any:
    """`Remembered` where nothing is."""
    return decide()


class Ladder:
    """Climbs until an int8 model loses no more than it may.

    Args:
        workshop: Makes forms of the float model.
        measures: Says what a file costs.
        limit: Points of the metric on validation that int8 may cost.
        folder: For files that are tried.
        on_progress: Is told what is tried.
        remembered: Keeps the order in which operators go back to float, which hangs on times.

    Attributes:
        rungs: What was tried, in order of time; what is taken up again in the end comes last.
    """

    def __init__(
        self,
        workshop: Workshop,
        measures: Measures,
        limit: float,
        folder: Path,
        on_progress: Callable[[str], None],
        remembered: Remembered = anew,
    ) -> None:
        self._workshop = workshop
        self._measures = measures
        self._limit = limit
        self._folder = folder
        self._on_progress = on_progress
        self._remembered = remembered
        self._numbers = itertools.count(1)
        self._slower: Held | None = None
        self.rungs: list[Rung] = []

    def climb(self, form: Form, path: Path, *, any_ranges: bool, finetune: Finetune | None = None) -> Held:
        """Climbs from a form.

        Args:
            form: What the ladder stands on.
            path: Its file.
            any_ranges: Whether the other methods for ranges may be taken.
            finetune: Trains the best form further, as the last rung; none if left out.

        Returns:
            The first that loses little enough and is fast enough; or else what loses least of all that is fast enough,
            if that may be chance, or if nothing slower loses little enough; or else that. No other file is left of what
            was tried.
        """
        best = self._judged("as it is", form, path, None, time.monotonic())
        for name, change in self._changes(form, any_ranges):
            if self._is_enough(best):
                return best
            best = self._better(self._try(name, change(best.form), best), best)
        narrow = form.scheme.weight_bits == 7
        if not self._is_enough(best) and narrow:
            best = self._wide(best)
        if self._measures.refuses(best.loss):
            best = self._mixed(best, narrow)
        if self._measures.refuses(best.loss) and finetune is not None:
            best = self._finetuned(best, finetune, narrow)
        return self._rather_slower(best)

    def _rather_slower(self, best: Held) -> Held:
        """If nothing else can be accurate enough, what is slower than its limit is still faster than float32."""
        slower = self._slower
        if slower is None:
            return best
        if not self._measures.refuses(best.loss) or self._measures.may_be_chance(best.loss):
            slower.path.unlink()
            return best
        rung = max(index for index, one in enumerate(self.rungs) if one.note == _SLOWER and one.loss == slower.loss)
        self.rungs.append(replace(self.rungs.pop(rung), kept=True))
        best.path.unlink()
        return slower

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
        path = self._written("8-bit weights", form)
        if refusal := _may_overflow(path):
            self._refuse("8-bit weights", path, refusal, started)
            return best
        return self._better(self._judged("8-bit weights", form, path, best, started), best)

    def _mixed(self, best: Held, narrow: bool) -> Held:
        """Operators go back to float: twice as many each time until it is enough, then as few as are enough."""
        # Which operators these are shows without what makes up for errors in the mean, and takes its time.
        plain = replace(best.form, corrected=False, rounded=False)
        operators = self._ranked(plain, best.path)
        too_few, enough, count = 0, len(operators) + 1, 1
        found, promised = best, self._measures.keeps_speed(best.path)
        while too_few < count < enough:
            form, name = _with_float(plain, operators[:count]), f"{count} of {len(operators)} operators in float"
            started, path = time.monotonic(), self._written(name, form)
            if not _holds_int8(path):
                self._refuse(name, path, "nothing is left in int8", started)
                enough = count
                count = (too_few + enough) // 2
                continue
            if narrow and (refusal := _unproved(form, path)):  # the proof was of weights that were rounded otherwise
                self._refuse(name, path, refusal, started)
                too_few = count
                count = min(2 * count, len(operators)) if enough > len(operators) else (too_few + enough) // 2
                continue
            held = self._judged(name, form, path, found, started)
            accepted = not self._measures.refuses(held.loss)
            better = accepted or held.loss.points < found.loss.points
            if better and not self._measures.is_faster(held.path):
                self._drop(held, found, "not faster than float32")
                enough = count  # more would be slower still
            elif better and promised and not self._measures.keeps_speed(held.path):
                self._set_aside(held, accepted)
                enough = count  # more would be slower still
            elif accepted:
                found, enough = self._take(held, found), count
            else:
                found, too_few = self._better(held, found), count
            count = min(2 * count, len(operators)) if enough > len(operators) else (too_few + enough) // 2
        if found is best or plain == best.form:
            return found
        form = replace(found.form, corrected=best.form.corrected, rounded=best.form.rounded)
        name, started = "the same, corrected and rounded as before", time.monotonic()
        path = self._written(name, form)
        if narrow and (refusal := _unproved(form, path)):
            self._refuse(name, path, refusal, started)
            return found
        return self._better(self._judged(name, form, path, found, started), found)

    def _ranked(self, form: Form, path: Path) -> list[frozenset[str]]:
        """The nodes of each operator, in the order in which they go back to float.

        As it was before the run was ended: another order would be another file, which its training does not fit.
        """

        def rank() -> list[list[str]]:
            return [sorted(one.nodes) for one in rank_operators(self._workshop, form, self._show_ranking)]

        key = f"operators of {hashlib.sha256(path.read_bytes()).hexdigest()} by what int8 costs"
        return [frozenset(nodes) for nodes in self._remembered(key, rank)]

    def _finetuned(self, best: Held, finetune: Finetune, narrow: bool) -> Held:
        name, started = "trained with int8", time.monotonic()
        self._on_progress("training with int8")
        path = self._fresh()
        refusal = finetune(best.path, path)
        if not refusal and narrow:
            refusal = _unproved(best.form, path)
        if refusal:
            self._refuse(name, path, refusal, started)
            return best
        return self._better(self._judged(name, best.form, path, best, started), best)

    def _try(self, name: str, form: Form, best: Held) -> Held:
        started = time.monotonic()
        return self._judged(name, form, self._written(name, form), best, started)

    def _written(self, name: str, form: Form) -> Path:
        self._on_progress(name)
        path = self._fresh()
        self._workshop.write(form, path)
        return path

    def _judged(self, name: str, form: Form, path: Path, best: Held | None, started: float) -> Held:
        held = Held(form, path, self._measures.loss(path))
        kept = best is None or held.loss.points < best.loss.points
        self.rungs.append(Rung(name, held.loss, kept, time.monotonic() - started))
        return held

    def _better(self, held: Held, best: Held) -> Held:
        refused, before = (self._measures.refuses(one.loss) for one in (held, best))
        if (refused, held.loss.points) < (before, best.loss.points):
            return self._take(held, best)
        self._drop(held, best)
        return best

    def _take(self, held: Held, best: Held) -> Held:
        """The rung that was tried last is what goes on."""
        self.rungs[-1] = replace(self.rungs[-1], kept=True)
        best.path.unlink()
        return held

    def _drop(self, held: Held, best: Held, note: str = "") -> None:
        """What went before is what goes on."""
        self.rungs[-1] = replace(self.rungs[-1], kept=False, note=note)
        held.path.unlink()

    def _set_aside(self, held: Held, accepted: bool) -> None:
        """Not what goes on; but the last that was accurate enough, with the fewest operators in float, may ship."""
        self.rungs[-1] = replace(self.rungs[-1], kept=False, note=_SLOWER)
        if not accepted:
            held.path.unlink()
            return
        if self._slower is not None:
            self._slower.path.unlink()
        self._slower = held

    def _refuse(self, name: str, path: Path, note: str, started: float) -> None:
        self.rungs.append(Rung(name, None, False, time.monotonic() - started, note))
        path.unlink(missing_ok=True)

    def _is_enough(self, held: Held) -> bool:
        return held.loss.points <= self._limit + _ROUNDING

    def _fresh(self) -> Path:
        return self._folder / f"rung-{next(self._numbers)}.onnx"

    def _show_ranking(self, done: int, total: int) -> None:
        self._on_progress(f"measuring what int8 costs, operator {done + 1} of {total}")


def _holds_int8(path: Path) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def _may_overflow(path: Path) -> str:
    """Why a file must not run where sums of two products have 16 bits; empty if it is proved that it may."""
    layers = saturating_layers(onnx.load(path))
    return f"sums of {len(layers)} layers could overflow 16 bits" if layers else ""


def _unproved(form: Form, path: Path) -> str:
    """The same of a file of a form, unless its weights have 7 bits, whose sums never do."""
    return _may_overflow(path) if form.scheme.weight_bits == 8 else ""


def _with_float(form: Form, operators: Sequence[frozenset[str]]) -> Form:
    nodes = frozenset().union(*operators)
    scheme = replace(form.scheme, float_nodes=form.scheme.float_nodes | nodes)
    return replace(form, scheme=scheme, restored=form.restored | nodes)
