"""A small network with one layer of every kind, as float32 and as int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEEDS = {"x": np.random.default_rng(0).random((2, 3, 16, 16), np.float32)}


def network(path: Path, width: int = 32) -> Path:
    """`x` [2, 3, 16, 16] to `y` [2, 10]: plain, strided, depthwise, in two groups, pooled, and a product."""
    random = np.random.default_rng(0)
    weights = {
        "stem": random.standard_normal((width, 3, 3, 3)) / 5,
        "strided": random.standard_normal((2 * width, width, 3, 3)) / 17,
        "depthwise": random.standard_normal((2 * width, 1, 5, 5)) / 5,
        "grouped": random.standard_normal((2 * width, width, 1, 1)) / 6,
        "head": random.standard_normal((2 * width, 10)) / 8,
    }
    nodes = [
        _convolution("x", "stem", pads=[1] * 4),
        _convolution("stem.out", "strided", pads=[1] * 4, strides=[2, 2]),
        _convolution("strided.out", "depthwise", pads=[2] * 4, group=2 * width),
        _convolution("depthwise.out", "grouped", group=2),
        helper.make_node("GlobalAveragePool", ["grouped.out"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "head"], ["y"], name="head"),
    ]
    flat = [node for part in nodes for node in (part if isinstance(part, list) else [part])]
    graph = helper.make_graph(
        flat,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _convolution(before: str, name: str, **attributes: object) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", [before, name], [f"{name}.raw"], name=name, **attributes),
        helper.make_node("Relu", [f"{name}.raw"], [f"{name}.out"], name=f"{name}.relu"),
    ]
