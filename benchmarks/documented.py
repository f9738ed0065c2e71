"""ONNX Runtime's documented way to int8: quant_pre_process and quantize_static, with their defaults but where said."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Feeds = Mapping[str, NDArray[np.generic]]


class Samples(CalibrationDataReader):
    """Calibration samples one by one, as ONNX Runtime's calibrators take them."""

    def __init__(self, batches: Iterable[Feeds]) -> None:
        self._samples = iter(
            {name: values[index : index + 1] for name, values in feeds.items()}
            for feeds in batches
            for index in range(len(next(iter(feeds.values()))))
        )

    def get_next(self) -> Feeds | None:
        return next(self._samples, None)


def documented(source: Path, path: Path, batches: Iterable[Feeds]) -> Path:
    """Quantizes a float file as the documentation says."""
    simplified = path.with_name(f"{path.stem}-simplified.onnx")
    quant_pre_process(str(source), str(simplified))
    return quantize(onnx.load(simplified), path, batches)


def quantize(model: onnx.ModelProto, path: Path, batches: Iterable[Feeds], **settings: Any) -> Path:
    """The second step alone, of a model that is ready for it, with other settings."""
    with quiet():
        # A copy: the quantizer changes the model that it is given.
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        quantize_static(copy, str(path), Samples(batches), **settings)
    return path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the quantizer's advice and progress."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
