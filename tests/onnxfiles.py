"""Small float ONNX files as people bring them, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.quantization.graphs import Constants, model_of


def saved(path: Path, text: str, constants: Constants | None = None, **metadata: str) -> Path:
    """A file from the body of a graph in ONNX's own syntax."""
    model = model_of(text, constants)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def classifier(
    path: Path,
    *,
    batch: str = "N",
    channels: int = 3,
    size: int = 8,
    width: int = 16,
    classes: int = 5,
    **metadata: str,
) -> Path:
    """Two convolutions, a global pooling and a layer of logits: `image` to `logits`."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return saved(
        path,
        f"""classifier (float[{batch},{channels},{size},{size}] image) => (float[{batch},{classes}] logits) {{
            a = Conv <pads = [1, 1, 1, 1]> (image, w1)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1]> (b, w2)
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            logits = Gemm <transB = 1> (f, w3)
        }}""",
        {"w1": weights(width, channels, 3, 3), "w2": weights(width, width, 3, 3), "w3": weights(classes, width)},
        **metadata,
    )


def two_by_two(path: Path) -> Path:
    """Two inputs, one of which has an open length, and two outputs: `scores` of 4 classes and `mean`, one value."""
    rng = np.random.default_rng(1)
    constants = {
        "w1": rng.standard_normal((6, 8)).astype(np.float32),
        "w2": rng.standard_normal((3, 8)).astype(np.float32),
        "w3": rng.standard_normal((8, 4)).astype(np.float32),
        "axes": np.array([1], np.int64),
    }
    return saved(
        path,
        """two (float[N,L,6] sequence, float[N,3] extra) => (float[N,4] scores, float[N,1] mean) {
            a = MatMul (sequence, w1)
            b = Relu (a)
            pooled = ReduceMean <keepdims = 0> (b, axes)
            c = MatMul (extra, w2)
            d = Add (pooled, c)
            e = Relu (d)
            scores = MatMul (e, w3)
            mean = ReduceMean <keepdims = 1> (e, axes)
        }""",
        constants,
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
