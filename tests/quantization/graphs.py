"""Small ONNX graphs from text, run in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxdistill.device.host import read_host
from onnxdistill.quantization.scheme import saturates

Constants = dict[str, Any]


def model_of(text: str, constants: Constants | None = None, opset: int = 20) -> onnx.ModelProto:
    """A model from the body of a graph in ONNX's own syntax, with arrays as initializers."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> {text}')
    for name, array in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(model)
    return model


def add_exact_sums(options: onnxruntime.SessionOptions) -> None:
    """Lets this processor add products as those with VNNI do; see `quantization.saturation`."""
    if saturates(read_host()):
        options.add_session_config_entry("session.x64quantprecision", "1")


def run(model: onnx.ModelProto, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
    """The outputs in a session with all optimizations, the same on all processors."""
    options = onnxruntime.SessionOptions()
    add_exact_sums(options)
    return _run(model, options, feeds)


def run_as_here(model: onnx.ModelProto, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
    """The outputs in a session with all optimizations, as this processor adds products."""
    return _run(model, onnxruntime.SessionOptions(), feeds)


def _run(
    model: onnx.ModelProto, options: onnxruntime.SessionOptions, feeds: dict[str, NDArray[Any]]
) -> list[NDArray[Any]]:
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
