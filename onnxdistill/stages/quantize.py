"""Stage `quantize`: static int8 in QDQ form, with ranges calibrated here; ONNX Runtime quantizes the weights."""

from __future__ import annotations

import io
import logging
import platform
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

from onnxdistill.device.host import read_processor
from onnxdistill.onnxfile import save_checked
from onnxdistill.quantization.calibration import QUANTIZABLE, Activations, collect, find_activations
from onnxdistill.quantization.placement import float_beginning
from onnxdistill.quantization.preparation import finish, prepare
from onnxdistill.quantization.ranges import Range, find_range
from onnxdistill.recipe import QuantizeTable
from onnxdistill.tasks.base import Feeds

X86 = frozenset({"x86_64", "amd64"})
# Processors with one of these add products of int8 in 32 bits; without, x86 saturates at 16 bits.
NON_SATURATING = frozenset({"AVX512-VNNI", "AVX-VNNI", "AMX-INT8"})


@dataclass(frozen=True)
class QuantizeResult:
    """An int8 ONNX file, and how it was made.

    Attributes:
        path: The file.
        activations: `uint8` or `int8`.
        reduced_range: Whether weights have 7 bits, so that 16-bit sums do not saturate.
        ranges: Of the activations, by the names of their tensors: what their scales and zero points follow from.
        unseen: Tensors that had no element in any calibration sample; the nodes around them stay in float.
    """

    path: Path
    activations: str
    reduced_range: bool
    ranges: dict[str, Range] = field(default_factory=dict, repr=False)
    unseen: tuple[str, ...] = ()


def quantize(source: Path, path: Path, calibration: Iterable[Feeds], table: QuantizeTable) -> QuantizeResult:
    """Quantizes weights and activations to 8 bits.

    Activations are unsigned on x86-64 (U8S8): the runtime's kernels there take unsigned activations; signed ones
    are rewritten and slower. On processors without VNNI, weights get 7 bits.

    Args:
        source: The float ONNX file.
        path: Where the int8 file goes.
        calibration: Inputs by name, batch by batch, that the ranges of activations are taken from; read once.
        table: The recipe's `[quantize]`.

    Raises:
        DataError: If there is no calibration sample.
        ModelFileError: If an activation is NaN or infinite; the message names it.
    """
    x86 = platform.machine().lower() in X86
    activations = table.activations if table.activations != "auto" else ("uint8" if x86 else "int8")
    unsigned = activations == "uint8"
    reduced_range = x86 and not NON_SATURATING & set(read_processor().int8_features or ())
    with _quiet_quantizer():
        # A quantizer that does not know a shape leaves the layer in float.
        model = prepare(onnx.load(source))
        found = find_activations(model)
        ranges = _find_ranges(model, found, calibration, table)
        unseen = tuple(name for name in found.types if name not in ranges)
        data = {
            name: TensorData(lowest=found.types[name].type(low), highest=found.types[name].type(high))
            for name, (low, high) in ranges.items()
        }
        # What quantize_static does with the ranges of its own calibrators.
        quantizer = QDQQuantizer(
            model,
            table.per_channel,
            reduced_range,
            QuantType.QInt8,
            QuantType.QUInt8 if unsigned else QuantType.QInt8,
            TensorsData(CalibrationMethod.MinMax, data),
            [],
            [*_nodes_around(model, unseen), *(float_beginning(model) if unsigned and x86 else ())],
            sorted(QUANTIZABLE),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(path))
    _finish(source, path)
    return QuantizeResult(path, activations, reduced_range, ranges, unseen)


def _find_ranges(
    model: onnx.ModelProto, found: Activations, calibration: Iterable[Feeds], table: QuantizeTable
) -> dict[str, Range]:
    ranges = {name: Range(0.0, 1.0) for name in sorted(found.bounded)}
    for name, histogram in collect(model, found.observed, calibration).items():
        covered = find_range(histogram, table.ranges)
        if covered is not None:
            # Rounded as the quantizer gets it: scales follow from what is reported.
            ranges[name] = Range(*(float(found.types[name].type(end)) for end in covered))
    return ranges | {name: ranges[target] for name, target in found.same_as.items() if target in ranges}


def _nodes_around(model: onnx.ModelProto, tensors: Collection[str]) -> list[str]:
    nodes = [node for node in model.graph.node if not {*node.input, *node.output}.isdisjoint(tensors)]
    for index, node in enumerate(nodes):
        node.name = node.name or f"unnamed node {index}"  # the quantizer leaves out nodes by name
    return [node.name for node in nodes]


def _finish(source: Path, path: Path) -> None:
    quantized = finish(onnx.load(path))
    have = {entry.key for entry in quantized.metadata_props}
    for entry in onnx.load(source).metadata_props:
        if entry.key not in have:
            quantized.metadata_props.add(key=entry.key, value=entry.value)
    save_checked(quantized, path)


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """The quantizer logs advice to run the preparation that has just been run, and prints its own progress."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
