"""Histograms of a calibration that was made before: found again by what they were made of."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx

from onnxdistill.device import runtime
from onnxdistill.device.cachefolder import cache_folder, found, keep
from onnxdistill.quantization.calibration import Feeds, collect
from onnxdistill.quantization.histogram import HALF, Histogram

_LEAST_SECONDS = 2.0  # what is collected sooner isn't worth a file
_MOST_FILES = 32
_FORMAT = 1


def collected(
    model: onnx.ModelProto, names: Sequence[str], calibration: Callable[[], Iterable[Feeds]]
) -> dict[str, Histogram]:
    """`collect`, or what it came to for the same model, tensors, samples and version of ONNX Runtime.

    Samples are compared by their content, so that they are read in any case; the network is not run again.

    Args:
        model: The float model, after shape inference.
        names: See `collect`.
        calibration: Gives the samples, batch by batch, always the same ones.

    Raises:
        DataError: As `collect` does.
        ModelFileError: As `collect` does.
        UsageError: As `collect` does.
    """
    if not names:
        return {}
    file = cache_folder("calibrations") / f"{_key(model, names, calibration())}.npz"
    content = found(file)
    kept = None if content is None else _read(content, names)
    if kept is not None:
        return kept
    started = time.monotonic()
    histograms = collect(model, names, calibration())
    if time.monotonic() - started > _LEAST_SECONDS:
        keep(file, _written(histograms), _MOST_FILES)
    return histograms


def _key(model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Feeds]) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {HALF} {runtime.load_runtime().__version__} {sorted(names)}".encode())
    digest.update(model.SerializeToString(deterministic=True))
    inputs: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for feeds in batches:
        for name, values in feeds.items():
            content = inputs.setdefault(name, hashlib.sha256())
            # Inputs of unequal lengths belong together batch by batch.
            if len(feeds) > 1:
                content.update(f"{values.shape[:1]}".encode())
            if kinds.get(name) != (kind := f"{values.dtype.str} {values.shape[1:]}"):
                kinds[name] = kind
                content.update(kind.encode())
            content.update(repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes())
    for name, content in sorted(inputs.items()):
        digest.update(f"{name} {content.hexdigest()}".encode())
    return digest.hexdigest()


def _written(histograms: dict[str, Histogram]) -> bytes:
    memory = io.BytesIO()
    ends = np.array([[one.minimum, one.maximum, one.exponent] for one in histograms.values()], np.float64)
    counts = np.stack([one.counts for one in histograms.values()])
    np.savez_compressed(memory, names=np.array(list(histograms)), ends=ends, counts=counts)
    return memory.getvalue()


def _read(content: bytes, names: Sequence[str]) -> dict[str, Histogram] | None:
    """None if the file is damaged."""
    try:
        with np.load(io.BytesIO(content)) as arrays:
            known, ends, counts = (arrays[key] for key in ("names", "ends", "counts"))
        parts = zip(known.tolist(), ends.tolist(), counts, strict=True)
        made = {name: Histogram.of(name, each, low, high, int(exponent)) for name, (low, high, exponent), each in parts}
        return {name: made[name] for name in names}
    except Exception:  # noqa: BLE001  # a damaged file can make the reader raise anything
        return None
