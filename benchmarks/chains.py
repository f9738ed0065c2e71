"""Models whose work is known: chains of equal convolutions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def convolutions(path: Path, channels: int, size: int, count: int) -> Path:
    """Writes `count` convolutions of 3x3, one after the other, on `x` of `[1, channels, size, size]`."""
    weight = np.random.default_rng(0).normal(0, 1 / (3 * channels**0.5), (channels, channels, 3, 3))
    names = ["x", *(f"t{index}" for index in range(1, count)), "y"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [before, "w"], [after], pads=[1, 1, 1, 1])
            for before, after in itertools.pairwise(names)
        ],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, size, size])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
