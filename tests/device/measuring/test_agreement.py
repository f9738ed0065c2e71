from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxdistill.device.bench import bench
from onnxdistill.device.measuring.agreement import agreements
from onnxdistill.device.session import open_session
from onnxdistill.errors import UsageError


def model(
    path: Path,
    operator: str,
    constants: dict[str, list[float]] | None = None,
    output: str = "y",
    shape: tuple[int | str, ...] = ("N", 3),
) -> Path:
    """`y = operator(x, constants)`, both of `shape`."""
    values = constants or {}
    initializers = [helper.make_tensor(name, TensorProto.FLOAT, [len(data)], data) for name, data in values.items()]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *values], [output])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


X = np.array([[1, 2, 3], [3, 2, 1], [0, -4, 0]], np.float32)


def test_by_hand(tmp_path: Path) -> None:
    first = open_session(model(tmp_path / "a.onnx", "Identity"))
    second = open_session(model(tmp_path / "b.onnx", "Add", {"c": [0.0, 1.5, 0.0]}))
    (found,) = agreements(("a", first), ("b", second), [{"x": X[:2]}, {"x": X[2:]}])
    # Rows become [1, 3.5, 3], [3, 3.5, 1] and [0, -2.5, 0]: the first two change their largest value.
    assert (found.model, found.baseline, found.output, found.samples) == ("b", "a", "y", 3)
    assert (found.max_absolute, found.max_relative) == (1.5, 1.5 / 4)
    assert found.argmax_percent == pytest.approx(100 / 3)
    # In whichever batch the largest difference and the largest value are.
    (turned,) = agreements(("a", first), ("b", second), [{"x": X[2:]}, {"x": X[:2]}])
    assert (turned.max_absolute, turned.max_relative) == (1.5, 1.5 / 4)
    single = model(tmp_path / "c.onnx", "Mul", {"c": [1.0, 2.0, 1.0]})
    (doubled,) = agreements(("a", first), ("c", open_session(single)), [{"x": X[2:]}, {"x": X[:2]}])
    assert (doubled.max_absolute, doubled.max_relative) == (4.0, 1.0)


def test_the_classes_of_maps_are_the_second_axis(tmp_path: Path) -> None:
    """Two classes in two places: [1, 2] and [0, 3], so that class 0 is the larger one here and class 1 there."""
    maps = ("N", 2, 1, 2)
    first = open_session(model(tmp_path / "a.onnx", "Identity", shape=maps))
    second = open_session(model(tmp_path / "b.onnx", "Mul", {"c": [4.0, 1.0]}, shape=maps))
    x = np.array([[[[1, 2]], [[0, 3]]]], np.float32)
    # [4, 2] and [0, 3]: the same classes, though the largest value of the first row has moved.
    (same,) = agreements(("a", first), ("b", second), [{"x": x}])
    assert same.argmax_percent == 100
    # [-1, 2] and [0, 3]: class 1 in both places, though the largest values of the rows have stayed.
    third = open_session(model(tmp_path / "c.onnx", "Mul", {"c": [-1.0, 1.0]}, shape=maps))
    (other,) = agreements(("a", first), ("c", third), [{"x": x}])
    assert other.argmax_percent == 50


def test_what_is_not_finite(tmp_path: Path) -> None:
    logarithm = open_session(model(tmp_path / "a.onnx", "Log"))
    same = open_session(model(tmp_path / "b.onnx", "Log"))
    (equal,) = agreements(("a", logarithm), ("b", same), [{"x": X}])
    assert (equal.max_absolute, equal.max_relative) == (0.0, 0.0)
    identity = open_session(model(tmp_path / "c.onnx", "Identity"))
    (unequal,) = agreements(("c", identity), ("a", logarithm), [{"x": X}])
    assert math.isinf(unequal.max_absolute)
    assert math.isinf(unequal.max_relative)


def test_outputs_that_are_no_numbers_are_not_compared(tmp_path: Path) -> None:
    """As the labels of a classifier that was not trained by gradients."""
    paths = []
    for name, kind in (("texts", "string"), ("numbers", "int64")):
        model = onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => ({kind}[N, 3] label, float[N, 3] y) {{
                label = Cast<to = {TensorProto.STRING if kind == "string" else TensorProto.INT64}>(x)
                y = Identity(x)
            }}"""
        )
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(model, paths[-1])
    texts, numbers = (open_session(path) for path in paths)
    for first, second in ((texts, texts), (texts, numbers), (numbers, texts)):
        assert [one.output for one in agreements(("a", first), ("b", second), [{"x": X}])] == ["y"]
    assert [one.output for one in agreements(("a", numbers), ("b", numbers), [{"x": X}])] == ["label", "y"]


def test_other_names(tmp_path: Path) -> None:
    first = open_session(model(tmp_path / "a.onnx", "Identity"))
    second = open_session(model(tmp_path / "b.onnx", "Identity", output="z"))
    with pytest.raises(UsageError, match=r"their outputs are y float32.* and z float32"):
        agreements(("a", first), ("b", second), [{"x": X}])


def test_other_sizes_are_told_before_anything_is_timed(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    models = {"a": make_model("a.onnx"), "b": make_model("b.onnx", shape=("N", 3, 9, 9))}
    with pytest.raises(UsageError, match=r"their inputs are x float32\[batch, 3, 8, 8\] and x float32\[N, 3, 9, 9\]"):
        bench(models, seconds=1e6, check_outputs=True)
    other_names = {"a": make_model("a.onnx"), "b": make_model("b.onnx", shape=("N", 3, 8, 8))}
    assert bench(other_names, runs=2, check_outputs=True).agreements[0].max_absolute == 0
