"""The smallest model that every execution provider takes, to find out which of them really run."""

from __future__ import annotations

import numpy as np

from onnxdistill.device.onnxbytes import Node, Value, model_bytes
from onnxdistill.device.session import Array, SessionSettings, open_session
from onnxdistill.errors import OnnxDistillError

_WEIGHT = np.array([[1, 2, 3], [-4, 5, -6]], dtype=np.float32)  # output channels x input channels
_SIZE = 4


def probe_model() -> bytes:
    """An ONNX file: `x` of `[1, 3, 4, 4]` through a convolution of 1x1 to `y` of `[1, 2, 4, 4]`."""
    outputs, inputs = _WEIGHT.shape
    return model_bytes(
        [Node("Conv", ("x", "w"), ("y",))],
        [Value("x", "float32", (1, inputs, _SIZE, _SIZE))],
        [Value("y", "float32", (1, outputs, _SIZE, _SIZE))],
        {"w": _WEIGHT.reshape(outputs, inputs, 1, 1)},
    )


def probe_provider(provider: str) -> str:
    """Runs the model on a provider. Returns what is wrong with the provider, and nothing if it works."""
    x = np.linspace(-1, 1, 3 * _SIZE * _SIZE, dtype=np.float32).reshape(1, 3, _SIZE, _SIZE)
    try:
        y: Array = open_session(probe_model(), SessionSettings(provider=provider)).run({"x": x})["y"]
    except OnnxDistillError as error:
        return error.what
    expected = np.einsum("oi,nihw->nohw", _WEIGHT, x)
    # Wide enough for the reduced precision that accelerators multiply with (TF32, fp16).
    if not np.allclose(y, expected, rtol=1e-2, atol=1e-2):
        return f"It computes wrong values: off by up to {float(np.abs(y - expected).max()):.3g}."
    return ""
