"""Small ONNX graphs from text, run in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, parser

Constants = dict[str, Any]


def model_of(text: str, constants: Constants | None = None, opset: int = 20) -> onnx.ModelProto:
    """A model from the body of a graph in ONNX's own syntax, with arrays as initializers."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> {text}')
    for name, array in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
    """The outputs in a session with all optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(None, feeds)
    return outputs


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes there are of each type."""
    return Counter(node.op_type for node in model.graph.node)


def uniform(*shape: int, seed: int = 0, width: float = 4.0) -> NDArray[np.float32]:
    """Random numbers on both sides of zero."""
    return np.random.default_rng(seed).uniform(-width, width, shape).astype(np.float32)
