from __future__ import annotations

import json
import platform
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxdistill.device.profiling.placement import Audit, audit
from onnxdistill.device.profiling.trace import NodeTrace, Trace, trace
from tests.device.profiling.traces import CPU, node, trace_of

CUDA = "CUDAExecutionProvider"
F, U, S = "float32 1 8 4 4", "uint8 1 8 4 4", "int8 1 8 4 4"
W = "int8 8 8 3 3"


def quantized_conv(name: str = "qconv", time_ms: float = 4.0) -> NodeTrace:
    return node(
        "QLinearConv", [U, "float32", "uint8", W, "float32", "int8", "float32", "uint8"], U, name=name, time_ms=time_ms
    )


def to_float(name: str = "dq", dtype: str = U, time_ms: float = 1.0, constants: int = 2) -> NodeTrace:
    return node("DequantizeLinear", [dtype, "float32", "uint8"], F, name=name, time_ms=time_ms, constants=constants)


def to_integer(name: str = "q", dtype: str = U, time_ms: float = 1.0) -> NodeTrace:
    return node("QuantizeLinear", [F, "float32", "uint8"], dtype, name=name, time_ms=time_ms, constants=2)


def conv(name: str = "conv", time_ms: float = 4.0) -> NodeTrace:
    return node("Conv", [F, "float32 8 8 3 3"], F, name=name, time_ms=time_ms, constants=1)


def subjects(result: Audit) -> list[str]:
    return [finding.subject for finding in result.findings]


def test_float_model_has_no_finding() -> None:
    result = audit(
        trace_of(conv(), node("Relu", [F], F), node("Gemm", ["float32 1 8", "float32 10 8"], "float32 1 10"))
    )
    assert result.findings == ()
    assert result.islands == ()
    assert not result.quantized
    assert (result.float_nodes, result.integer_nodes, result.products, result.integer_products) == (3, 0, 2, 0)
    assert result.nodes_by_provider == {CPU: 3}


def test_model_that_takes_an_image_of_bytes_is_not_quantized() -> None:
    assert not audit(trace_of(node("Cast", [U], F), conv())).quantized


def test_well_quantized_model_has_no_finding_about_its_ends() -> None:
    result = audit(
        trace_of(
            to_integer(),
            quantized_conv(),
            node("MaxPool", [U], U, time_ms=1.0),
            node("Reshape", ["uint8 1 8 1 1", "int64 2"], "uint8 1 8"),
            node("QGemm", ["uint8 1 8", "float32", "uint8", "int8 10 8"], "uint8 1 10"),
            to_float(),
        )
    )
    assert result.findings == ()
    assert result.quantized
    # The pooling works on integers, too.
    assert (result.integer_nodes, result.float_nodes, result.integer_products, result.products) == (3, 0, 2, 2)


def test_nodes_on_another_provider_and_their_copies() -> None:
    result = audit(
        trace_of(
            node("Conv", [F, "float32 8 8 3 3"], F, provider=CUDA, time_ms=5.0),
            node("MemcpyToHost", [F], F, provider=CUDA, name="out", time_ms=1.0),
            node("NonMaxSuppression", [F], "int64 3", name="nms", time_ms=2.0),
            node("Resize", [F], F, name="up", time_ms=1.0),
            node("MemcpyFromHost", [F], F, provider=CUDA, name="in", time_ms=0.5),
            overhead_ms=0.5,
            provider=CUDA,
        )
    )
    elsewhere, copies = result.findings
    assert (
        elsewhere.text == "2 of 5 nodes run on cpu and not on cuda: NonMaxSuppression, Resize; 3 ms, 30.0% of the run."
    )
    assert elsewhere.nodes == ("nms", "up")
    assert copies.text == (
        "2 copies between the memories of two devices (MemcpyToHost, MemcpyFromHost): 1.5 ms, 15.0% of the run."
    )
    assert "do not run on cuda" in copies.fix
    assert result.nodes_by_provider == {CUDA: 3, CPU: 2}


def test_float_islands_are_what_runs_between_conversions() -> None:
    result = audit(
        trace_of(
            to_integer("in"),
            quantized_conv(time_ms=10.0),
            to_float("dq1"),
            node("Sigmoid", [F], F, name="gate", time_ms=2.0),
            node("Mul", [F, F], F, name="scale", time_ms=1.0),
            to_integer("q1"),
            quantized_conv("second", time_ms=10.0),
            to_float("dq2"),
            node("ReduceMean", [F, "int64 2"], F, name="mean", time_ms=0.05),
            to_integer("q2"),
            node("QGemm", ["uint8 1 8", "float32", "uint8", "int8 10 8"], "uint8 1 10", time_ms=10.0),
            to_float("out"),
            overhead_ms=0.95,
        )
    )
    assert [(island.nodes, island.op_types) for island in result.islands] == [
        (("gate", "scale"), ("Sigmoid", "Mul")),
        (("mean",), ("ReduceMean",)),
    ]
    conversions, floats = result.findings
    assert floats.text == (
        "3 nodes of this quantized model still compute in float, none of the 3 convolutions and matrix products among "
        "them, in 2 islands (Sigmoid + Mul (gate, 3 ms, 7.5%), ReduceMean (mean, 50 µs, 0.1%)): "
        "3.05 ms, 7.6% of the run."
    )
    assert floats.fix == "Export global pooling as GlobalAveragePool, which has an integer kernel."
    assert conversions.text == (
        "4 conversions between float and integers inside the model are left (DequantizeLinear ×2, QuantizeLinear ×2) "
        "that no integer kernel has taken in: 4 ms, 10.0% of the run."
    )
    assert conversions.nodes == ("dq1", "q1", "dq2", "q2")


def test_products_left_in_float_by_signed_activations() -> None:
    result = audit(
        trace_of(
            to_integer("in"),
            quantized_conv(),
            to_integer("q0", S),
            to_float("dq", S),
            node("DequantizeLinear", [W, "float32 8", "int8 8"], "float32 8 8 3 3", name="weight", constants=3),
            conv("left", time_ms=40.0),
            to_integer("q1"),
        )
    )
    floats, conversions = result.findings
    assert "1 node of this quantized model still computes in float, 1 of the 2 convolutions" in floats.text
    assert floats.fix.startswith("The activations are signed (int8)")
    assert "1 of them of constant weights, in every run," in conversions.text


def test_products_left_in_float_among_unsigned_activations() -> None:
    result = audit(
        trace_of(to_integer("in"), quantized_conv(), to_float(), conv("left"), to_integer("q1"), quantized_conv("b"))
    )
    floats = next(finding for finding in result.findings if finding.subject == "float islands")
    assert floats.fix.startswith("Quantize their inputs, weights and outputs")


def test_layout_changes_count_if_they_take_time() -> None:
    change = node("ReorderOutput", [F], F, name="reorder", time_ms=0.5)
    large = audit(trace_of(conv(), change, node("Transpose", [F], F, time_ms=0.5)))
    (finding,) = large.findings
    assert finding.subject == "layout"
    assert finding.text == "2 changes of the memory layout (ReorderOutput, Transpose): 1 ms, 20.0% of the run."
    assert audit(trace_of(conv(time_ms=100.0), change)).findings == ()


def test_costliest_finding_comes_first() -> None:
    result = audit(
        trace_of(
            quantized_conv(),
            to_float(time_ms=2.0),
            conv("left", time_ms=1.0),
            to_integer(time_ms=0.1),
            quantized_conv("b"),
        )
    )
    assert subjects(result) == ["conversions", "float islands"]


def test_as_json() -> None:
    result = audit(trace_of(quantized_conv(), to_float(), conv("left"), to_integer(), quantized_conv("b")))
    data = json.loads(json.dumps(result.to_json()))
    assert data["schema_version"] == 1
    assert data["islands"][0]["nodes"] == ["left"]
    assert [finding["subject"] for finding in data["findings"]] == subjects(result)


class _Batches(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._left = [{"x": rng.standard_normal((1, 16, 16, 16)).astype(np.float32)} for _ in range(2)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def residual_network(path: Path) -> Path:
    """Two residual blocks of 3x3 convolutions, a pooling and a classifier."""
    rng = np.random.default_rng(0)
    nodes, constants, value = [], [], "x"
    for block in range(2):
        for index in range(2):
            name = f"w{block}{index}"
            constants.append(numpy_helper.from_array(rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12, name))
        nodes += [
            helper.make_node("Conv", [value, f"w{block}0"], [f"a{block}"], f"conv{block}0", pads=[1] * 4),
            helper.make_node("Relu", [f"a{block}"], [f"b{block}"]),
            helper.make_node("Conv", [f"b{block}", f"w{block}1"], [f"c{block}"], f"conv{block}1", pads=[1] * 4),
            helper.make_node("Add", [f"c{block}", value], [f"d{block}"]),
            helper.make_node("Relu", [f"d{block}"], [f"e{block}"]),
        ]
        value = f"e{block}"
    constants.append(numpy_helper.from_array(rng.standard_normal((10, 16)).astype(np.float32), "w"))
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """One network as ONNX Runtime runs it in float, and with unsigned and signed activations.

    Every node takes a millisecond, so that no finding depends on what else the machine does.
    """
    folder = tmp_path_factory.mktemp("placement")
    files = {"float": residual_network(folder / "float.onnx")}
    for name, kind in (("unsigned", QuantType.QUInt8), ("signed", QuantType.QInt8)):
        files[name] = folder / f"{name}.onnx"
        quantize_static(
            files["float"],
            files[name],
            _Batches(),
            quant_format=QuantFormat.QDQ,
            activation_type=kind,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    feeds = {"x": np.ones((1, 16, 16, 16), np.float32)}
    found = {name: trace(file, feeds, runs=1) for name, file in files.items()}
    return {
        name: replace(one, nodes=tuple(replace(node, time_ms=1.0) for node in one.nodes), overhead_ms=0.0)
        for name, one in found.items()
    }


def test_real_float_network_is_not_talked_to_about_quantization(traces) -> None:
    result = audit(traces["float"])
    assert not result.quantized
    assert set(subjects(result)) <= {"layout"}
    assert (result.products, result.integer_products) == (5, 0)


def test_real_unsigned_network_computes_in_integers(traces) -> None:
    result = audit(traces["unsigned"])
    assert result.quantized
    assert (result.products, result.integer_products, result.float_nodes) == (5, 5, 0)
    assert set(subjects(result)) <= {"layout"}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="signed activations have kernels elsewhere")
def test_real_signed_network_is_left_with_islands(traces) -> None:
    result = audit(traces["signed"])
    assert result.integer_products < result.products
    left = [finding for finding in result.findings if finding.subject == "float islands"]
    assert left
    assert left[0].fix.startswith("The activations are signed (int8)")
    remaining = Counter(node.op_type for node in traces["signed"].nodes)
    assert (
        remaining["DequantizeLinear"] > Counter(node.op_type for node in traces["unsigned"].nodes)["DequantizeLinear"]
    )
    assert "conversions" in subjects(result)
