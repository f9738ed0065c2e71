"""`Gemm` as a plain layer: a product and a bias, without factors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxdistill.quantization.constants import add_constant, constant, input_of, number_of, unique_name


def plain_gemms(model: ir.Model) -> int:
    """Rewrites `alpha * A B + beta * C` as `A B' + c` with a vector c, or as `A B' + C`; returns how many changed.

    ONNX Runtime's quantizer (1.32) takes C for the bias of a layer whatever stands before it: with `beta = 3` its int8
    output is 1.6 dB from noise, and with C as a row `[1, N]` it raises ValueError as soon as weights have scales for
    channels. Factors go into the constants that they belong to. A C that is computed, or differs from sample to sample,
    is added by an `Add`.
    """
    return sum(_make_plain(model.graph, node) for node in list(model.graph) if node.op_type == "Gemm")


def _make_plain(graph: ir.Graph, gemm: ir.Node) -> bool:
    weight = constant(gemm.inputs[1])
    if weight is None or weight.dtype != np.float32:  # it stays in float
        return False
    changed = False
    name = gemm.outputs[0].name
    if (alpha := number_of(gemm, "alpha", 1.0)) != 1:
        gemm.replace_input_with(1, add_constant(graph, f"{name}_weight", (alpha * weight).astype(np.float32)))
        gemm.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
        changed = True
    added = input_of(gemm, 2)
    if added is None:
        return changed
    beta = number_of(gemm, "beta", 1.0)
    width = weight.shape[0 if number_of(gemm, "transB", 0) else 1]
    bias = constant(added)
    if bias is not None and bias.ndim == 1 and bias.size == width and beta == 1:
        return changed
    gemm.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    if bias is not None and bias.size in (1, width) and (bias.size == 1 or bias.shape[-1] == width):
        vector = np.broadcast_to((beta * bias).astype(np.float32).reshape(-1), (width,))
        gemm.replace_input_with(2, add_constant(graph, f"{name}_bias", np.ascontiguousarray(vector)))
        return True
    _add_behind(graph, gemm, added, beta)
    return True


def _add_behind(graph: ir.Graph, gemm: ir.Node, added: ir.Value, beta: float) -> None:
    """Moves what a `Gemm` adds into a node of its own."""
    output = gemm.outputs[0]
    gemm.resize_inputs(2)
    product = ir.node(
        "Gemm",
        list(gemm.inputs),
        attributes={key: attribute.value for key, attribute in gemm.attributes.items()},
        outputs=[ir.Value(name=unique_name(graph, f"{output.name}_product"), type=output.type)],
        name=gemm.name,
    )
    nodes = [product]
    if beta != 1:
        factor = add_constant(graph, f"{output.name}_beta", np.array(beta, np.float32))
        nodes.append(ir.node("Mul", [added, factor]))
        nodes[-1].outputs[0].name = unique_name(graph, f"{output.name}_added")
        nodes[-1].outputs[0].type = output.type
        added = nodes[-1].outputs[0]
    total = ir.node("Add", [product.outputs[0], added])
    total.outputs[0].type, total.outputs[0].shape = output.type, output.shape
    ir.convenience.replace_nodes_and_values(graph, gemm, [gemm], [*nodes, total], [output], [total.outputs[0]])
