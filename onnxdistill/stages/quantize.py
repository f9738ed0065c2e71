"""Stage `quantize`: static int8 in QDQ form, as fast and as accurate as measuring finds it.

Speed first: what is not faster than float32 on the target is of no use, however accurate. The fastest form then climbs
the ladder of accuracy, which also ends where int8 would no longer be faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onnxdistill.device.host import HostFacts
from onnxdistill.device.measuring.compare import describe, measurably_faster
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.quantization.ladder import Finetune, Ladder, Loss, Remembered, Rung, anew
from onnxdistill.quantization.ranges import Method
from onnxdistill.quantization.scheme import candidates, usual_scheme
from onnxdistill.quantization.workshop import Form, Int8Model, Workshop
from onnxdistill.recipe import QuantizeTable
from onnxdistill.tasks.base import Feeds

# By how much another form has to be faster than the usual one, with its whole interval, to be worth a surprise.
_CLEARLY_FASTER = 1.02


class Judge(Protocol):
    """What decides between int8 files: measured by the caller, who knows the data and the target."""

    limit: float
    """Points of the metric on validation that int8 may cost."""

    measurable: bool
    """Whether there is a metric; else only latency decides."""

    def loss(self, path: Path) -> Loss:
        """What a file costs, compared with the float one."""
        ...

    def speedup(self, path: Path) -> Estimate:
        """How many times faster a file is than the float one."""
        ...

    def refusal(self, loss: Loss) -> str:
        """Why a file that costs so much must not ship; empty if it may."""
        ...

    def may_be_chance(self, loss: Loss) -> bool:
        """Whether a file that is refused may be accurate enough after all, which is measured before it ships."""
        ...


@dataclass(frozen=True)
class Variant:
    """A scheme that was timed.

    Attributes:
        scheme: In words.
        speedup: Over the float file.
    """

    scheme: str
    speedup: Estimate


@dataclass(frozen=True)
class QuantizeResult:
    """An int8 ONNX file, and how it was found.

    Attributes:
        path: The file.
        form: How it was made.
        loss: What it costs on validation; None if that was not measured.
        variants: The schemes that were timed, in order of time.
        rungs: What was tried for its accuracy, in order of time; what was taken up again in the end comes last.
        refusal: Why it must not ship; empty if it may.
    """

    path: Path
    form: Form
    loss: Loss | None = None
    variants: tuple[Variant, ...] = ()
    rungs: tuple[Rung, ...] = ()
    refusal: str = ""


def quantize(
    source: Path, path: Path, calibration: Iterable[Feeds], table: QuantizeTable, host: HostFacts | None = None
) -> Int8Model:
    """Quantizes weights and activations to 8 bits, in the form that mostly is the fastest; nothing is measured.

    Activations are unsigned on x86-64 (U8S8): the runtime's kernels there take unsigned activations; signed ones
    are rewritten and slower. On processors without VNNI, weights get 7 bits.

    Args:
        source: The float ONNX file.
        path: Where the int8 file goes.
        calibration: Inputs by name, batch by batch, that the ranges of activations are taken from; read once.
        table: The recipe's `[quantize]`.
        host: The machine that it is for; this one if left out.

    Raises:
        DataError: If there is no calibration sample.
        ModelFileError: If an activation is NaN or infinite; the message names it.
    """
    workshop = Workshop(source, lambda: calibration, host, remembers=False)
    scheme = usual_scheme(workshop.prepared, table.activations, table.per_channel, workshop.host)
    return workshop.write(Form(scheme, _first_ranges(table)), path)


def quantize_measured(
    workshop: Workshop,
    path: Path,
    table: QuantizeTable,
    judge: Judge,
    *,
    finetune: Finetune | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
    remembered: Remembered = anew,
    keeps_speed: Callable[[Path], bool] = lambda _: True,
) -> QuantizeResult:
    """Finds the fastest int8 form of a model that is accurate enough.

    Args:
        workshop: Makes forms of the float model.
        path: Where the int8 file goes; what is tried lies beside it meanwhile.
        table: The recipe's `[quantize]`.
        judge: Measures.
        finetune: The last rung of the ladder; none if left out.
        on_progress: Is told what is done.
        remembered: Keeps what hangs on times and is not asked of the judge.
        keeps_speed: Whether a file is as fast as it has to be: accuracy is not bought with what was promised.

    Raises:
        DataError: If there is no calibration sample.
        ModelFileError: If an activation is NaN or infinite; the message names it.
    """
    on_progress("calibrating")
    folder = path.with_name(f"{path.stem}-tried")
    folder.mkdir(exist_ok=True)
    timed = _timed(workshop, folder, table, judge, on_progress)
    variants = tuple(Variant(str(form.scheme), ratio) for form, _, ratio in timed)
    faster = [one for one in timed if measurably_faster(one[2])]
    form, file, ratio = _fastest(faster or timed)
    for _, other, _ in timed:
        if other != file:
            other.unlink()
    if not faster:
        file.replace(path)
        return QuantizeResult(path, form, None, variants, refusal=f"int8 is {describe(ratio)} as float32.")
    if not judge.measurable:
        file.replace(path)
        return QuantizeResult(path, form, None, variants)
    ladder = Ladder(workshop, _Measures(judge, keeps_speed), judge.limit, folder, on_progress, remembered)
    best = ladder.climb(form, file, any_ranges=table.ranges == "auto", finetune=finetune)
    best.path.replace(path)
    return QuantizeResult(path, best.form, best.loss, variants, tuple(ladder.rungs), judge.refusal(best.loss))


class _Measures:
    """A judge, as the ladder asks it."""

    def __init__(self, judge: Judge, keeps_speed: Callable[[Path], bool]) -> None:
        self._judge = judge
        self.keeps_speed = keeps_speed
        self.loss, self.may_be_chance = judge.loss, judge.may_be_chance

    def refuses(self, loss: Loss) -> bool:
        return bool(self._judge.refusal(loss))

    def is_faster(self, path: Path) -> bool:
        return measurably_faster(self._judge.speedup(path))


_Timed = tuple[Form, Path, Estimate]


def _timed(
    workshop: Workshop, folder: Path, table: QuantizeTable, judge: Judge, on_progress: Callable[[str], None]
) -> list[_Timed]:
    """Every form, its file, and how many times faster than float32 it is."""
    schemes = list(candidates(workshop.prepared, table.activations, table.per_channel, workshop.host))
    timed = []
    for number, scheme in enumerate(schemes, 1):
        on_progress(f"measuring int8 against float32, {number} of {len(schemes)} schemes")
        path = folder / f"scheme-{number}.onnx"
        form = Form(scheme, _first_ranges(table))
        workshop.write(form, path)
        timed.append((form, path, judge.speedup(path)))
    return timed


def _fastest(timed: Sequence[_Timed]) -> _Timed:
    """The first one that no other is clearly faster than."""
    best = timed[0]
    for one in timed[1:]:
        if one[2].low > best[2].high and one[2].value > _CLEARLY_FASTER * best[2].value:
            best = one
    return best


def _first_ranges(table: QuantizeTable) -> Method:
    return "minmax" if table.ranges == "auto" else table.ranges
