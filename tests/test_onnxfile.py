"""ONNX files hold the same bytes for the same model."""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from onnxdistill.onnxfile import save_checked


def model(operator_sets: list[tuple[str, int]], metadata: list[str]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    for key in metadata:
        node.metadata_props.add(key=key, value=key.upper())
    sets = [helper.make_operatorsetid(*each) for each in operator_sets]
    made = helper.make_model(helper.make_graph([node], "g", [value], [result]), opset_imports=sets, ir_version=10)
    for key in metadata:
        made.metadata_props.add(key=key, value=key.upper())
    return made


def test_the_order_of_sets_and_metadata_does_not_matter(tmp_path: Path) -> None:
    contents = set()
    sets = [("", 20), ("com.microsoft", 1), ("ai.onnx.ml", 5)]
    for index, (order, keys) in enumerate(
        itertools.product(itertools.permutations(sets), itertools.permutations(["b", "a", "c"]))
    ):
        save_checked(model(list(order), list(keys)), tmp_path / f"{index}.onnx")
        contents.add((tmp_path / f"{index}.onnx").read_bytes())
    assert len(contents) == 1
    saved = onnx.load_from_string(contents.pop())
    assert [(each.domain, each.version) for each in saved.opset_import] == [("", 20)]
    assert [(entry.key, entry.value) for entry in saved.metadata_props] == [("a", "A"), ("b", "B"), ("c", "C")]


def test_sets_that_nodes_use_stay(tmp_path: Path) -> None:
    inside = helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft")
    branch = helper.make_graph([inside], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2])])
    made = model([("com.microsoft", 1), ("", 20), ("ai.onnx.ml", 5)], [])
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    made.graph.initializer.append(condition)
    made.graph.node[0].CopyFrom(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    save_checked(made, tmp_path / "m.onnx")
    assert [each.domain for each in onnx.load(tmp_path / "m.onnx").opset_import] == ["", "com.microsoft"]


def test_what_is_not_valid_is_not_written(tmp_path: Path) -> None:
    made = model([("", 20)], [])
    made.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(onnx.checker.ValidationError):
        save_checked(made, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_long_name_of_the_standard_operators_is_one_of_theirs(tmp_path: Path) -> None:
    save_checked(model([("ai.onnx", 20), ("com.microsoft", 1)], []), tmp_path / "m.onnx")
    assert [each.domain for each in onnx.load(tmp_path / "m.onnx").opset_import] == ["ai.onnx"]
