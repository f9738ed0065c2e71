"""Traces written by hand."""

from __future__ import annotations

from math import prod

from onnxdistill.device.profiling.profiler import Tensor
from onnxdistill.device.profiling.trace import NodeTrace, Trace

CPU = "CPUExecutionProvider"
_ITEM_BYTES = {"float32": 4, "int8": 1, "uint8": 1, "int64": 8, "int32": 4}


def tensor(text: str) -> Tensor:
    """`"uint8 1 3 8 8"`."""
    dtype, *sizes = text.split()
    return Tensor(dtype, tuple(map(int, sizes)))


def node(
    op_type: str,
    inputs: list[str],
    output: str,
    *,
    name: str = "",
    time_ms: float = 1.0,
    provider: str = CPU,
    constants: int = 0,
    calls: float = 1.0,
) -> NodeTrace:
    """A node of which the last `constants` inputs are constants."""
    tensors = [tensor(text) for text in inputs]
    sizes = [prod(one.shape) * _ITEM_BYTES[one.dtype] for one in tensors]
    given = len(tensors) - constants
    out = tensor(output)
    return NodeTrace(
        name=name or op_type.lower(),
        op_type=op_type,
        provider=provider,
        depth=0,
        inputs=tuple(tensors),
        outputs=(out,),
        activation_bytes=sum(sizes[:given]),
        parameter_bytes=sum(sizes[given:]),
        output_bytes=prod(out.shape) * _ITEM_BYTES[out.dtype],
        calls_per_run=calls,
        time_ms=time_ms,
        mean_ms=time_ms,
        median_ms=time_ms,
    )


def trace_of(*nodes: NodeTrace, overhead_ms: float = 0.0, provider: str = CPU, call_ms: float = 0.0001) -> Trace:
    """A trace of these nodes."""
    whole = sum(one.time_ms for one in nodes) + overhead_ms
    return Trace(
        model="m.onnx",
        provider=provider,
        threads=1,
        runs=10,
        nodes=nodes,
        wall_ms=whole,
        profiled_ms=whole,
        profiler_ms=0.0,
        overhead_ms=overhead_ms,
        call_ms=call_ms,
        doubts=("A doubt.",),
    )
