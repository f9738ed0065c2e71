from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MakeModel = Callable[..., Path]

SMALL, LARGE = (2, 40), (64, 40)  # width and size: many times the work


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a convolution of 3x3 with a Relu, `x` to `y`; returns the path."""

    def make(
        name: str = "model.onnx",
        *,
        shape: Sequence[int | str] = ("batch", 3, 8, 8),
        width: int = 4,
        elem_type: int = TensorProto.FLOAT,
    ) -> Path:
        weight = np.random.default_rng(0).standard_normal((width, 3, 3, 3)).astype(np.float32)
        nodes = [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["f", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", elem_type, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], width, *shape[2:]])],
            [numpy_helper.from_array(weight, "w")],
        )
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    return make


@pytest.fixture
def pair(make_model: MakeModel) -> tuple[Path, Path]:
    """A model, and one that is many times slower, with the same names."""
    small, large = (
        make_model(f"{name}.onnx", shape=("batch", 3, size, size), width=width)
        for name, (width, size) in (("small", SMALL), ("large", LARGE))
    )
    return small, large
