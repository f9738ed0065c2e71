"""Stage `quantize`: ONNX Runtime's static int8 quantization in QDQ form."""

from __future__ import annotations

import io
import logging
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from onnxdistill.device.host import read_processor
from onnxdistill.onnxfile import save_checked
from onnxdistill.recipe import QuantizeTable
from onnxdistill.tasks.base import Feeds

RANGES = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
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
    """

    path: Path
    activations: str
    reduced_range: bool


def quantize(source: Path, path: Path, calibration: Iterable[Feeds], table: QuantizeTable) -> QuantizeResult:
    """Quantizes weights and activations to 8 bits.

    Activations are unsigned on x86-64 (U8S8): the runtime's kernels there take unsigned activations; signed ones
    are rewritten and slower. On processors without VNNI, weights get 7 bits.

    Args:
        source: The float ONNX file.
        path: Where the int8 file goes.
        calibration: Inputs by name, batch by batch, that the ranges of activations are taken from.
        table: The recipe's `[quantize]`.
    """
    x86 = platform.machine().lower() in X86
    activations = table.activations if table.activations != "auto" else ("uint8" if x86 else "int8")
    reduced_range = x86 and not NON_SATURATING & set(read_processor().int8_features or ())
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as folder, _quiet_quantizer():
        prepared = Path(folder) / "prepared.onnx"
        # Shape inference and folding first: a quantizer that does not know a shape leaves the layer in float.
        quant_pre_process(str(source), str(prepared))
        quantize_static(
            str(prepared),
            str(path),
            # The histogram calibrators cannot join batches of different sizes; one sample a batch always fits.
            _CalibrationReader(calibration if table.ranges == "minmax" else _one_by_one(calibration)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8 if activations == "uint8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=table.per_channel,
            reduce_range=reduced_range,
            calibrate_method=RANGES[table.ranges],
        )
    _copy_metadata(source, path)
    return QuantizeResult(path, activations, reduced_range)


class _CalibrationReader(CalibrationDataReader):  # type: ignore[misc]  # the base class is untyped
    def __init__(self, calibration: Iterable[Feeds]) -> None:
        self._feeds = iter(calibration)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def _one_by_one(calibration: Iterable[Feeds]) -> Iterator[Feeds]:
    for feeds in calibration:
        count = len(next(iter(feeds.values())))
        for index in range(count):
            yield {name: values[index : index + 1] for name, values in feeds.items()}


def _copy_metadata(source: Path, path: Path) -> None:
    quantized = onnx.load(path)
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
