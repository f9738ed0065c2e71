from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdistill.device.profiling import peaks as probes
from onnxdistill.device.profiling.operators import kind, macs, moved_bytes, precision
from onnxdistill.device.profiling.peaks import Bandwidth, Peaks, Probe, bandwidth_probe, measure_peaks
from onnxdistill.device.profiling.roofline import NODE_COLUMNS, OP_TYPE_COLUMNS, OpProfile, op_profile
from onnxdistill.device.profiling.trace import trace
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import DataError
from tests.device.profiling.traces import node, trace_of

SCALES = ["float32", "uint8"]

# 100 GMAC/s in float32 and 400 in int8; 10 GB/s whatever the size.
PEAKS = Peaks(1, "cpu", {"float32": 100.0, "int8": 400.0}, (Bandwidth(1 << 10, 10.0), Bandwidth(1 << 20, 10.0)))


@pytest.mark.parametrize(
    ("op_type", "inputs", "output", "expected"),
    [
        # 2 images x 4 channels x 6 x 6 values, each of 3 x 3 x 3 products.
        ("Conv", ["float32 2 3 8 8", "float32 4 3 3 3"], "float32 2 4 6 6", 2 * 4 * 36 * 27),
        ("FusedConv", ["float32 2 3 8 8", "float32 4 3 3 3", "float32 4"], "float32 2 4 6 6", 2 * 4 * 36 * 27),
        # Channels last: the kernel still is [output, input, height, width].
        ("NhwcFusedConv", ["float32 2 8 8 3", "float32 4 3 3 3"], "float32 2 6 6 4", 2 * 4 * 36 * 27),
        ("ConvInteger", ["uint8 2 3 8 8", "int8 4 3 3 3"], "int32 2 4 6 6", 2 * 4 * 36 * 27),
        (
            "QLinearConv",
            ["uint8 2 8 8 3", *SCALES, "int8 4 3 3 3", "float32 4", "int8 4", *SCALES, "int32 4"],
            "uint8 2 6 6 4",
            2 * 4 * 36 * 27,
        ),
        # Two groups: half of the input channels for each value; depthwise: one.
        ("Conv", ["float32 1 8 5 5", "float32 6 4 1 1"], "float32 1 6 5 5", 6 * 25 * 4),
        ("Conv", ["float32 1 8 5 5", "float32 8 1 3 3"], "float32 1 8 5 5", 8 * 25 * 9),
        ("Conv", ["float32 1 8 50", "float32 6 8 3"], "float32 1 6 48", 6 * 48 * 24),
        # Every one of 3 x 4 x 4 values is spread over 5 channels x 2 x 2.
        ("ConvTranspose", ["float32 1 3 4 4", "float32 3 5 2 2"], "float32 1 5 8 8", 3 * 16 * 20),
        ("Gemm", ["float32 7 3", "float32 3 5", "float32 5"], "float32 7 5", 7 * 3 * 5),
        ("Gemm", ["float32 3 7", "float32 5 3"], "float32 7 5", 7 * 3 * 5),
        ("QGemm", ["uint8 7 3", *SCALES, "int8 5 3"], "uint8 7 5", 7 * 3 * 5),
        ("MatMul", ["float32 2 7 3", "float32 3 5"], "float32 2 7 5", 2 * 7 * 3 * 5),
        ("MatMul", ["float32 3", "float32 3 5"], "float32 5", 3 * 5),
        ("MatMul", ["float32 2 7 3", "float32 3"], "float32 2 7", 2 * 7 * 3),
        ("FusedMatMul", ["float32 2 3 7", "float32 2 3 5"], "float32 2 7 5", 2 * 7 * 3 * 5),
        ("QLinearMatMul", ["uint8 7 3", *SCALES, "int8 3 5"], "uint8 7 5", 7 * 3 * 5),
        ("MatMulInteger", ["uint8 7 3", "int8 3 5"], "int32 7 5", 7 * 3 * 5),
        ("DynamicQuantizeMatMul", ["float32 7 3", "int8 3 5"], "float32 7 5", 7 * 3 * 5),
        ("Relu", ["float32 2 3"], "float32 2 3", None),
        # A trace without the packed weight.
        ("Conv", ["float32 2 3 8 8"], "float32 2 4 6 6", None),
        ("QLinearConv", ["uint8 2 8 8 3", *SCALES, "float32 4", "int8 4"], "uint8 2 6 6 4", None),
    ],
)
def test_multiply_adds(op_type: str, inputs: list[str], output: str, expected: int | None) -> None:
    assert macs(node(op_type, inputs, output)) == expected


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_groups_divide_the_multiply_adds(groups: int, inputs: int, outputs: int, kernel: int) -> None:
    x, y = f"float32 1 {groups * inputs} 9 9", f"float32 1 {groups * outputs} 9 9"
    whole = macs(node("Conv", [x, f"float32 {groups * outputs} {groups * inputs} {kernel} {kernel}"], y))
    grouped = macs(node("Conv", [x, f"float32 {groups * outputs} {inputs} {kernel} {kernel}"], y))
    assert whole == grouped * groups


@pytest.mark.parametrize(
    ("op_type", "inputs", "output", "expected", "computes_in"),
    [
        ("QuantizeLinear", ["float32 4"], "uint8 4", "conversion", "uint8"),
        ("Transpose", ["uint8 1 4"], "uint8 4 1", "layout", "uint8"),
        ("MemcpyToHost", ["float32 4"], "float32 4", "copy", "float32"),
        ("Reshape", ["float32 4", "int64 1"], "float32 2 2", "view", "float32"),
        ("Loop", ["int64"], "float32 4", "control flow", "float32"),
        ("QLinearAdd", ["uint8 4"], "uint8 4", "integer", "int8"),
        ("MaxPool", ["uint8 1 4 2 2"], "uint8 1 4 1 1", "integer", "int8"),
        ("DynamicQuantizeMatMul", ["float32 7 3", "int8 3 5"], "float32 7 5", "integer", "int8"),
        ("Relu", ["float32 4"], "float32 4", "float", "float32"),
        ("Add", ["int64 4", "int64 4"], "int64 4", "other", "int64"),
    ],
)
def test_kinds_and_precisions(op_type, inputs, output, expected, computes_in) -> None:
    one = node(op_type, inputs, output)
    assert (kind(one), precision(one)) == (expected, computes_in)


def test_bytes_moved() -> None:
    assert moved_bytes(node("Conv", ["float32 1 2 3 3", "float32 4 2 1 1"], "float32 1 4 3 3", constants=1)) == (
        4 * 18 + 4 * 8 + 4 * 36
    )
    assert moved_bytes(node("Reshape", ["float32 100", "int64 2"], "float32 10 10")) == 0


def test_a_node_against_the_peaks() -> None:
    convolution = node(
        "Conv", ["float32 1 64 56 56", "float32 64 64 3 3"], "float32 1 64 56 56", time_ms=2.0, constants=1
    )
    result = op_profile(trace_of(convolution, overhead_ms=0.5), PEAKS)
    (row,) = result.nodes
    count = 64 * 64 * 9 * 56 * 56
    assert row.macs == count
    assert row.gmacs_per_s == pytest.approx(count / 2e-3 / 1e9)
    assert row.share_of_peak == pytest.approx(count / 2e-3 / 1e9 / 100)
    assert (row.precision, row.share, row.bound) == ("float32", 0.8, "compute")
    assert result.doubts == ("A doubt.",)


def test_what_happens_more_than_once_a_run_counts_so_often() -> None:
    product = node("MatMul", ["float32 100 100", "float32 100 100"], "float32 100 100", time_ms=0.1, calls=5.0)
    (row,) = op_profile(trace_of(product), PEAKS).nodes
    assert (row.macs, row.moved_bytes) == (5_000_000, 5 * 3 * 40_000)
    assert row.gmacs_per_s == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("one", "bound"),
    [
        # 1 GMAC takes 10 ms at the peak.
        (node("MatMul", ["float32 1000 1000", "float32 1000 1000"], "float32 1000 1000", time_ms=12.0), "compute"),
        (node("MatMul", ["float32 1000 1000", "float32 1000 1000"], "float32 1000 1000", time_ms=50.0), "kernel"),
        # 8 MB take 0.8 ms.
        (node("Relu", ["float32 1000000"], "float32 1000000", time_ms=1.0), "memory"),
        (node("Erf", ["float32 1000000"], "float32 1000000", time_ms=9.0), "kernel"),
        # A product with a single row reads 4 MB of weights for 1 MMAC.
        (node("MatMul", ["float32 1 1000", "float32 1000 1000"], "float32 1 1000", time_ms=0.5), "memory"),
        # Six calls of 0.1 µs each.
        (node("Relu", ["float32 10"], "float32 10", time_ms=0.0005), "overhead"),
        (node("Relu", ["float32 10"], "float32 10", time_ms=0.0007), "kernel"),
        # As integers, the multiply-adds of 50 ms above take 2.5 ms.
        (node("MatMulInteger", ["uint8 1000 1000", "int8 1000 1000"], "int32 1000 1000", time_ms=2.6), "compute"),
    ],
)
def test_what_bounds_a_node(one, bound: str) -> None:
    assert op_profile(trace_of(one), PEAKS).nodes[0].bound == bound


def test_a_time_too_short_to_count_gives_no_rate() -> None:
    tiny = node("MatMul", ["float32 1 4", "float32 4 4"], "float32 1 4", time_ms=0.001)
    (row,) = op_profile(trace_of(tiny), PEAKS).nodes
    assert (row.macs, row.gmacs_per_s, row.share_of_peak) == (16, None, None)


def test_a_node_beyond_the_peak_is_a_reason_for_doubt() -> None:
    product = ["float32 1000 1000", "float32 1000 1000"]
    fast = node("MatMul", product, "float32 1000 1000", name="fast", time_ms=8.0)
    slow = node("MatMul", product, "float32 1000 1000", name="slow", time_ms=9.5)
    assert op_profile(trace_of(slow, fast), PEAKS).doubts == (
        "A doubt.",
        "fast comes to 125% of what was measured as the peak: the machine was busier when the peaks were measured.",
    )
    assert op_profile(trace_of(slow), PEAKS).doubts == ("A doubt.",)


def test_operators_are_summed_up() -> None:
    first = node("Conv", ["float32 1 10 10 10", "float32 10 10 1 1"], "float32 1 10 10 10", name="a", time_ms=0.001)
    second = node("Conv", ["float32 1 100 100 1", "float32 100 100 10 1"], "float32 1 100 100 1", name="b", time_ms=0.2)
    relu = node("Relu", ["float32 10"], "float32 10", time_ms=0.0001)
    result = op_profile(trace_of(first, relu, second, overhead_ms=0.05), PEAKS)
    conv, other = result.op_types
    assert (conv.op_type, conv.nodes, conv.macs) == ("Conv", 2, 10_000 + 10_000_000)
    assert conv.time_ms == pytest.approx(0.201)
    assert conv.gmacs_per_s == pytest.approx(10.01e6 / 0.201e-3 / 1e9)
    # 0.1001 ms at the peak.
    assert conv.share_of_peak == pytest.approx(0.1001 / 0.201)
    assert conv.bound == "compute"
    assert (other.op_type, other.macs, other.share_of_peak, other.bound) == ("Relu", None, None, "overhead")
    assert conv.share + other.share + result.overhead_ms / result.run_ms == pytest.approx(1.0)


def test_a_precision_without_a_peak_has_no_share_of_it() -> None:
    floats = Peaks(1, "cpu", {"float32": 100.0}, ())
    product = node("MatMulInteger", ["uint8 100 100", "int8 100 100"], "int32 100 100", time_ms=1.0)
    result = op_profile(trace_of(product), floats)
    assert (result.nodes[0].share_of_peak, result.op_types[0].share_of_peak) == (None, None)
    assert result.nodes[0].gmacs_per_s == pytest.approx(1.0)
    assert result.nodes[0].bound == "kernel"


def test_rows_are_ready_to_print() -> None:
    product = node("MatMul", ["float32 1000 1000", "float32 1000 1000"], "float32 1000 1000", name="fc", time_ms=12.5)
    relu = node("Relu", ["float32 10"], "float32 10", name="act", time_ms=0.0001)
    result = op_profile(trace_of(product, relu, overhead_ms=12.4999), PEAKS)
    assert result.node_rows() == [
        ("fc", "MatMul", "12.5000", "50.0%", "1 G", "80", "80%", "compute"),
        ("act", "Relu", "0.0001", "0.0%", "", "", "", "overhead"),
    ]
    assert result.op_type_rows() == [
        ("MatMul", "1", "12.5000", "50.0%", "1 G", "80", "80%", "compute"),
        ("Relu", "1", "0.0001", "0.0%", "", "", "", "overhead"),
        ("outside the nodes", "", "12.4999", "50.0%", "", "", "", ""),
    ]
    assert all(len(row) == len(NODE_COLUMNS) for row in result.node_rows())
    assert all(len(row) == len(OP_TYPE_COLUMNS) for row in result.op_type_rows())


def test_profile_survives_json_and_refuses_other_data() -> None:
    result = op_profile(trace_of(node("MatMul", ["float32 9 9", "float32 9 9"], "float32 9 9")), PEAKS)
    data = json.loads(json.dumps(result.to_json()))
    assert OpProfile.from_json(data) == result
    with pytest.raises(DataError, match="schema version 7"):
        OpProfile.from_json({**data, "schema_version": 7})
    with pytest.raises(DataError, match="is damaged: 'peaks'"):
        OpProfile.from_json({key: value for key, value in data.items() if key != "peaks"})


@given(st.floats(0, 1e12))
def test_bandwidth_lies_between_those_measured(moved: float) -> None:
    measured = (Bandwidth(1 << 10, 80.0), Bandwidth(1 << 20, 40.0), Bandwidth(1 << 30, 10.0))
    one = Peaks(1, "cpu", {}, measured)
    assert 10.0 <= one.gb_per_s(moved) <= 80.0
    assert one.gb_per_s(1 << 20) == pytest.approx(40.0)
    # Half way on the logarithmic scale.
    assert one.gb_per_s(1 << 15) == pytest.approx(60.0)


ALL_PROBES: dict[str, Probe] = {
    "MatMul": probes.float_product_probe(),
    "Conv": probes.float_convolution_probe(16, 5),
    "QLinearMatMul": probes.integer_product_probe(),
    "QLinearConv": probes.integer_convolution_probe(16, 5),
    "Neg": bandwidth_probe(1 << 16),
}


@pytest.mark.parametrize("op_type", ALL_PROBES)
def test_probes_are_valid_models(op_type: str) -> None:
    model = onnx.load_from_string(ALL_PROBES[op_type].content)
    onnx.checker.check_model(model, full_check=True)
    assert {one.op_type for one in model.graph.node} == {op_type}
    assert len(model.graph.node) > 1


@pytest.mark.parametrize("op_type", ALL_PROBES)
def test_probes_do_the_work_that_they_claim(op_type: str) -> None:
    probe = ALL_PROBES[op_type]
    nodes = trace(probe.content, probe.feeds, runs=1, warmup=0).nodes
    if op_type == "Neg":
        assert Counter(one.op_type for one in nodes) == {"Neg": 64}
        assert sum(moved_bytes(one) for one in nodes) == probe.work == 64 << 16
    else:
        assert sum(macs(one) or 0 for one in nodes) == probe.work
        assert {precision(one) for one in nodes if macs(one)} == {"int8" if "QLinear" in op_type else "float32"}


def test_peaks_of_this_machine() -> None:
    found = measure_peaks(SessionSettings())
    assert set(found.gmacs_per_s) == {"float32", "int8"}
    # From a slow single-board computer to what no core reaches.
    assert all(0.1 < rate < 1e5 for rate in found.gmacs_per_s.values())
    assert [one.moved_bytes for one in found.bandwidths] == sorted(one.moved_bytes for one in found.bandwidths)
    assert all(0.05 < one.gb_per_s < 1e5 for one in found.bandwidths)
    assert Peaks.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_peak_is_that_of_the_best_run() -> None:
    """Every other run takes ten times as long by this clock."""
    ticks = iter(np.cumsum([0, *([1_000_000, 0, 10_000_000, 0] * 10_000)]).tolist())
    found = measure_peaks(SessionSettings(), clock=lambda: next(ticks))
    channels, height = 256, 7
    work = max(2 * 256**3, 2 * height**2 * channels**2 * 9, 2 * 28**2 * 128**2 * 9)
    assert found.gmacs_per_s["float32"] == pytest.approx(work / 1e-3 / 1e9)
    assert found.bandwidths[0].gb_per_s == pytest.approx(64 * (1 << 16) / 1e-3 / 1e9)


def test_peaks_on_a_provider_that_takes_no_probe() -> None:
    found = measure_peaks(SessionSettings(provider="rknpu"))
    assert found == Peaks(1, "rknpu", {}, ())
    assert found.gb_per_s(1e6) is None


@pytest.mark.parametrize(("level", "channels"), [("extended", {4}), ("all", {4, 8, 16})])
def test_a_real_convolution_is_counted_as_it_is_computed(make_model, level, channels) -> None:
    """A blocked layout pads the 4 output channels to as many as a register of the processor holds."""
    feeds = {"x": np.ones((2, 3, 8, 8), np.float32)}
    nodes = trace(make_model(), feeds, SessionSettings(optimization_level=level), runs=1).nodes
    (count,) = [macs(one) for one in nodes if macs(one)]
    assert count in {2 * width * 8 * 8 * 3 * 3 * 3 for width in channels}
