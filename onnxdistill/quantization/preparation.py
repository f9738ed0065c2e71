"""A float model made ready for quantization, and a quantized one finished.

`prepare` keeps the outputs and brings the model into the form that integer kernels take, `placement.float_beginning`
names nodes of it to exclude from quantization, and `finish` rewrites the quantized model.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from onnxdistill.errors import ModelFileError
from onnxdistill.quantization.gates import fold_hard_sigmoids
from onnxdistill.quantization.gemms import plain_gemms
from onnxdistill.quantization.hardswish import multiply_hard_swishes_in_integers, unify_hard_swishes
from onnxdistill.quantization.optimized import optimized
from onnxdistill.quantization.pooling import pool_globally
from onnxdistill.quantization.shapes import infer_shapes

# Below, DequantizeLinear has no scale for every channel.
_LEAST_OPSET = 13
# Of the format, that this operator set came with.
_LEAST_IR = 7
# Of protobuf, and so of a model in one piece.
_LARGEST_BYTES = 2**31 - 1


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites a float model for quantization.

    In this order: an opset with scales for every channel; no inputs that are weights as well; ONNX Runtime's own
    simplifications, which fold batch norms and constants and leave out `Identity`, so that biases that share one are
    constants again; `Gemm` without factors; hard-swish and hard sigmoid, global pooling; names for all nodes, since
    unnamed ones could only be excluded from quantization all together; shapes.

    `Relu` and `Clip` behind a layer stay: the quantizer takes them for the range of the layer's output, and with
    unsigned activations nothing of them is left. A bias that several layers share is split by the quantizer itself.

    Args:
        model: With its weights inside. It is not changed.

    Returns:
        A model whose outputs are equal up to rounding.

    Raises:
        ModelFileError: If ONNX Runtime cannot load the model, if it is larger than 2 GB, or if its opset is so old that
            it cannot be raised.
    """
    if model.ByteSize() > _LARGEST_BYTES:
        raise ModelFileError(
            f"The model has {model.ByteSize() / 1e9:.1f} GB, and can be quantized up to 2 GB.",
            "Quantize a smaller model, or parts of this one.",
        )
    rewritten = ir.from_proto(infer_shapes(optimized(_with_fixed_weights(_with_channel_scales(model)), "basic")))
    plain_gemms(rewritten)
    unify_hard_swishes(rewritten)
    fold_hard_sigmoids(rewritten)
    pool_globally(rewritten)
    _name_nodes(rewritten.graph)
    return infer_shapes(ir.to_proto(_without_leftovers(rewritten)))


def finish(quantized: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites a quantized model: what can be said only in integers.

    Args:
        quantized: By Q/DQ pairs. It is not changed.

    Returns:
        A model whose outputs differ by less than quantization itself makes them differ.
    """
    rewritten = ir.from_proto(quantized)
    multiply_hard_swishes_in_integers(rewritten)
    return ir.to_proto(_without_leftovers(rewritten))


def _with_channel_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    version = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), _LEAST_OPSET)
    if version >= _LEAST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _LEAST_OPSET)
    except (version_converter.ConvertError, RuntimeError) as error:
        raise ModelFileError(
            f"The model has opset {version}, and cannot be raised to {_LEAST_OPSET}, which int8 with a scale for "
            f"every channel begins with: {error}",
            f"Export it with opset {_LEAST_OPSET} or later.",
        ) from error


def _with_fixed_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without inputs that have a value already: a caller could replace a weight, but not what is made of it.

    Until version 3 of the format all weights were such inputs, and what is added later would have to be as well.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    constants = {tensor.name for tensor in fixed.graph.initializer}
    inputs = [port for port in model.graph.input if port.name not in constants]
    del fixed.graph.input[:]
    fixed.graph.input.extend(inputs)
    fixed.ir_version = max(fixed.ir_version, _LEAST_IR)
    return fixed


def _name_nodes(graph: ir.Graph) -> None:
    """Names those without one; that names differ, ONNX Runtime has made sure of."""
    taken = {node.name for node in graph}
    for node in graph:
        if not node.name:
            base = f"{node.op_type}_{node.outputs[0].name}"
            name, count = base, 1
            while name in taken:
                name, count = f"{base}_{count}", count + 1
            node.name = name
            taken.add(name)


def _without_leftovers(model: ir.Model) -> ir.Model:
    """Without the nodes and constants that nothing reads, and the operator sets that nothing uses."""
    for each in (RemoveUnusedNodesPass(), RemoveUnusedOpsetsPass()):
        model = each(model).model
    return model
