"""The smallest model that every execution provider takes, to find out which of them really run.

It is one convolution, spelled out as the protocol buffers of onnx.proto, since the device half has no `onnx`.
"""

from __future__ import annotations

import numpy as np

from onnxdistill.device.session import Array, SessionSettings, open_session
from onnxdistill.errors import OnnxDistillError

_WEIGHT = np.array([[1, 2, 3], [-4, 5, -6]], dtype=np.float32)  # output channels x input channels
_SIZE = 4
_FLOAT, _IR_VERSION, _OPSET = 1, 8, 17


def probe_model() -> bytes:
    """An ONNX file: `x` of `[1, 3, 4, 4]` through a convolution of 1x1 to `y` of `[1, 2, 4, 4]`."""
    outputs, inputs = _WEIGHT.shape
    node = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(3, "conv") + _text(4, "Conv")
    dims = b"".join(_number(1, size) for size in (outputs, inputs, 1, 1))
    weight = dims + _number(2, _FLOAT) + _text(8, "w") + _bytes(9, _WEIGHT.astype("<f4").tobytes())
    graph = (
        _bytes(1, node)
        + _text(2, "probe")
        + _bytes(5, weight)
        + _bytes(11, _value_info("x", inputs))
        + _bytes(12, _value_info("y", outputs))
    )
    opset = _text(1, "") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, opset)


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


def _value_info(name: str, channels: int) -> bytes:
    shape = b"".join(_bytes(1, _number(1, size)) for size in (1, channels, _SIZE, _SIZE))
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
