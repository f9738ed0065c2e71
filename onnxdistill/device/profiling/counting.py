"""Multiply-adds of a model as it was exported, before ONNX Runtime rewrites it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxdistill.device.profiling.operators import macs
from onnxdistill.device.profiling.profiler import CONTROL_FLOW, Tensor, read_operands
from onnxdistill.device.session import Array, SessionSettings, open_session

# What is inside them multiplies more than once, or in ways of its own.
_NOT_COUNTED = CONTROL_FLOW - {"If"} | {
    "Attention",
    "DeformConv",
    "Einsum",
    "GRU",
    "GroupQueryAttention",
    "LSTM",
    "MatMulNBits",
    "MultiHeadAttention",
    "RNN",
}


@dataclass(frozen=True)
class _Operation:
    op_type: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def count_macs(content: bytes, feeds: Mapping[str, Array]) -> int | None:
    """Multiply-adds of convolutions and matrix products in one run; elementwise work is left out.

    Args:
        content: Of an .onnx file.
        feeds: Its inputs by name.

    Returns:
        None for a model with operators whose multiply-adds are not known here, such as an LSTM or a loop.

    Raises:
        UsageError: If the inputs do not fit.
        ModelFileError: If ONNX Runtime cannot load or run the model, or if its profile cannot be read.
    """
    settings = SessionSettings(optimization_level="disabled")
    operands = read_operands(content, settings, open_session(content, settings), feeds)
    nodes = [_Operation(key[-1][2], one.inputs, one.outputs) for key, one in operands.items()]
    if any(node.op_type in _NOT_COUNTED for node in nodes):
        return None
    return sum(macs(node) or 0 for node in nodes)
