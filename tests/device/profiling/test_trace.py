from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxdistill.device.profiling import profiler
from onnxdistill.device.profiling.profiler import Call, Operands, Recording, Tensor, read_profile
from onnxdistill.device.profiling.profilercost import Cost, measure_cost
from onnxdistill.device.profiling.trace import Trace, summarize, trace
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import DataError, ModelFileError, UsageError

X = {"x": np.ones((2, 3, 8, 8), np.float32)}
NO_COST = Cost(0.0, 0.0, 0.0, 0.0, 0.0)


def float_info(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def event(name: str, begin: int, duration: int, op_type: str = "", index: int = 0, category: str = "Node") -> str:
    args = {
        "op_name": op_type,
        "provider": "CPUExecutionProvider",
        "node_index": str(index),
        "input_type_shape": [{"float": [1, 4]}, {"int64": []}],
        "output_type_shape": [{"float": [4]}],
        "activation_size": "16",
        "parameter_size": "8",
        "output_size": "16",
    }
    whole = {"cat": category, "dur": duration, "ts": begin, "ph": "X", "name": name, "args": args}
    return json.dumps(whole if category == "Node" else {**whole, "args": {}})


def write_profile(folder: Path, *events: str) -> Path:
    file = folder / "profile.json"
    file.write_text("[\n" + ",\n".join(events) + "\n]\n")
    return file


def call(name: str, begin: int, duration: int, provider: str = "CPUExecutionProvider") -> Call:
    operands = Operands(inputs=(Tensor("float32", (1,)),), outputs=(Tensor("float32", (1,)),))
    return Call(((0, name, "Relu"),), provider, begin, begin + duration, operands, duration)


def recording(runs: list[list[Call]], profiled_ms: list[float], wall_ms: list[float]) -> Recording:
    return Recording(np.array(wall_ms), np.array(profiled_ms), runs)


def summary(recorded: Recording, cost: Cost = NO_COST, provider: str = "CPUExecutionProvider") -> Trace:
    return summarize(recorded, cost, {}, "m.onnx", provider, SessionSettings(threads=2))


def test_events_of_a_profile_are_told_apart(tmp_path: Path) -> None:
    file = write_profile(
        tmp_path,
        event("model_loading_uri", 0, 50, category="Session"),
        event("session_initialization", 50, 50, category="Session"),
        event("first_fence_before", 110, 0, "Relu", 3),
        event("first_kernel_time", 110, 5, "Relu", 3),
        event("first_fence_after", 115, 0, "Relu", 3),
        event("SequentialExecutor::Execute", 105, 20, category="Session"),
        event("model_run", 100, 30, category="Session"),
        event("gpu_kernel", 210, 5, category="Kernel"),
        event("first_kernel_time", 210, 7, "Relu", 3),
        event("model_run", 200, 30, category="Session"),
    )
    runs = read_profile(file, "m.onnx")
    assert [[(one.key, one.own_us) for one in run] for run in runs] == [
        [(((3, "first", "Relu"),), 5)],
        [(((3, "first", "Relu"),), 7)],
    ]
    only = runs[0][0].operands
    assert only.inputs == (Tensor("float32", (1, 4)), Tensor("int64", ()))
    assert (only.activation_bytes, only.parameter_bytes, only.output_bytes) == (16, 8, 16)
    assert str(only.inputs[0]) == "float32[1, 4]"


def test_a_node_that_runs_a_graph_does_not_count_what_is_inside(tmp_path: Path) -> None:
    # In the order of the ends, as ONNX Runtime writes them; the inner If begins in the same microsecond as the Loop.
    file = write_profile(
        tmp_path,
        event("a_kernel_time", 11, 4, "Sin", 0),
        event("b_kernel_time", 16, 2, "Cos", 1),
        event("if_kernel_time", 10, 10, "If", 0),
        event("if2_kernel_time", 22, 3, "If", 0),
        event("loop_kernel_time", 10, 20, "Loop", 0),
        event("after_kernel_time", 30, 1, "Relu", 1),
        event("model_run", 5, 40, category="Session"),
    )
    (run,) = read_profile(file, "m.onnx")
    found = {one.key[-1][1]: (len(one.key), one.own_us, one.inner) for one in run}
    assert found["loop"] == (1, 20 - 10 - 3, 2)
    assert found["if"] == (2, 10 - 4 - 2, 2)
    assert found["a"] == (3, 4, 0)
    assert found["after"] == (1, 1, 0)
    assert [one.key[-1][1] for one in run] == ["loop", "if", "a", "b", "if2", "after"]


def test_unreadable_profile_is_explained(tmp_path: Path) -> None:
    file = write_profile(tmp_path, '{"cat" : "Node", "name" :"a"b_kernel_time"}')
    with pytest.raises(ModelFileError, match=r"m\.onnx: the profile of ONNX Runtime cannot be read .* Rename nodes"):
        read_profile(file, "m.onnx")


def test_times_are_put_together_by_hand() -> None:
    # Two nodes in four runs; the profiler adds 2 + 2 × 0.5 µs inside each, 1 µs between them, and 4 µs a run.
    durations = [(10, 103), (12, 101), (10, 105), (90, 199)]
    runs = [[call("a", 0, a), call("b", a + 3, b)] for a, b in durations]
    outside_us = [20, 20, 20, 20]
    profiled = [(a + b + more) / 1e3 for (a, b), more in zip(durations, outside_us, strict=True)]
    result = summary(recording(runs, profiled, [0.130, 0.132, 0.131, 0.400]), Cost(2.0, 0.5, 1.0, 4.0, 0.25))
    a, b = result.nodes
    # Of the short node the quiet half of the runs (the first two), of the long one its lower half (101, 103).
    assert a.time_ms == pytest.approx(0.011 - 0.003)
    assert b.time_ms == pytest.approx(0.102 - 0.003)
    assert (a.mean_ms, a.median_ms) == (pytest.approx(0.0305), pytest.approx(0.011))
    assert (a.calls_per_run, a.depth) == (1.0, 0)
    assert result.profiler_ms == pytest.approx(0.006)
    # 20 µs outside less 4 + 1 µs; the nodes leave 0.1305 - 0.107 ms unexplained, which is more.
    assert result.overhead_ms == pytest.approx(0.015)
    assert result.run_ms == pytest.approx(0.122)
    assert result.share(a.time_ms) == pytest.approx(0.008 / 0.122)
    assert result.wall_ms == pytest.approx(0.1315)
    assert (result.call_ms, result.runs, result.threads) == (0.00025, 4, 2)
    assert result.doubts == ()


def test_what_nodes_leave_of_a_run_bounds_its_overhead() -> None:
    result = summary(recording([[call("a", 0, 100)]], [0.150], [0.104]))
    assert result.overhead_ms == pytest.approx(0.004)


def test_time_of_a_node_does_not_go_below_nothing() -> None:
    result = summary(recording([[call("a", 0, 2)]], [0.005], [0.003]), Cost(9.0, 0.0, 0.0, 0.0, 0.2))
    assert result.nodes[0].time_ms == 0.0


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (summary(recording([[call("a", 0, 100)]], [0.101], [0.2])), r"come to 0\.101 ms .* takes 0\.2 ms"),
        (summary(recording([[call("a", 0, 4)]], [0.004], [0.002]), Cost(2.0, 0, 0, 0, 0)), "50% of their recorded"),
        (
            summary(recording([[call("a", 0, 100)]], [0.1], [0.1]), provider="CUDAExecutionProvider"),
            "On cuda the time of a node may be",
        ),
    ],
)
def test_doubts(result: Trace, reason: str) -> None:
    (doubt,) = result.doubts
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(doubt)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(0, 50))
def test_time_lies_within_what_was_recorded(durations: list[int], outside: int) -> None:
    runs = [[call("a", 0, duration)] for duration in durations]
    profiled = [(duration + outside) / 1e3 for duration in durations]
    result = summary(recording(runs, profiled, profiled))
    assert min(durations) / 1e3 - 1e-9 <= result.nodes[0].time_ms <= max(durations) / 1e3 + 1e-9
    assert 0 <= result.overhead_ms <= outside / 1e3 + 1e-9


def test_nodes_of_a_model_with_their_weights(make_model) -> None:
    result = trace(make_model(), X, SessionSettings(optimization_level="basic"), runs=3, warmup=1)
    (conv, relu) = result.nodes
    assert [(node.op_type, node.provider, node.calls_per_run) for node in result.nodes] == [
        ("Conv", "CPUExecutionProvider", 1.0),
        ("Relu", "CPUExecutionProvider", 1.0),
    ]
    assert conv.inputs == (Tensor("float32", (2, 3, 8, 8)), Tensor("float32", (4, 3, 3, 3)))
    assert conv.outputs == relu.inputs == relu.outputs == (Tensor("float32", (2, 4, 8, 8)),)
    assert (conv.activation_bytes, conv.parameter_bytes, conv.output_bytes) == (1536, 432, 2048)
    assert conv.mean_ms > 0
    assert conv.median_ms > 0
    assert result.nodes_ms <= result.run_ms
    assert (result.provider, result.runs, result.threads) == ("CPUExecutionProvider", 3, 1)


def test_outputs_in_fixed_places_are_profiled_as_well(make_model) -> None:
    result = trace(make_model(), X, SessionSettings(io_binding=True), runs=2, warmup=1)
    assert {node.calls_per_run for node in result.nodes} == {1.0}


def test_packed_weights_have_shapes_all_the_same() -> None:
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "g",
        [float_info("x", [1, 4])],
        [float_info("y", [1, 8])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (gemm,) = trace(model.SerializeToString(), {"x": np.ones((1, 4), np.float32)}, runs=1).nodes
    assert gemm.inputs == (Tensor("float32", (1, 4)), Tensor("float32", (8, 4)))
    assert gemm.name == "Gemm_0"


def test_settings_change_the_graph_that_is_profiled(make_model) -> None:
    nodes = {
        level: [
            node.op_type for node in trace(make_model(), X, SessionSettings(optimization_level=level), runs=1).nodes
        ]
        for level in ("disabled", "extended")
    }
    assert nodes["disabled"] == ["Cast", "Conv", "Relu"]
    assert nodes["extended"] == ["FusedConv"]


def loop_model(times: int) -> bytes:
    body = helper.make_graph(
        [helper.make_node("Cos", ["v"], ["w"], name='q"uo\\te'), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            float_info("v", [4]),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), float_info("w", [4])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["times", "", "x"], ["y"], body=body, name="loop"),
            helper.make_node("Sin", ["y"], ["z"]),
        ],
        "g",
        [float_info("x", [4])],
        [float_info("z", [4])],
        [numpy_helper.from_array(np.array(times), "times")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_nodes_inside_a_loop_are_counted_and_its_time_is_its_own() -> None:
    result = trace(loop_model(5), {"x": np.ones(4, np.float32)}, runs=1)
    nodes = {node.op_type: node for node in result.nodes}
    assert (nodes["Loop"].depth, nodes["Loop"].calls_per_run) == (0, 1.0)
    assert (nodes["Cos"].depth, nodes["Cos"].calls_per_run, nodes["Cos"].name) == (1, 5.0, 'q"uo\\te')
    assert (nodes["Sin"].depth, nodes["Sin"].calls_per_run) == (0, 1.0)
    assert list(nodes).index("Loop") < list(nodes).index("Cos") < list(nodes).index("Sin")
    assert sum(node.mean_ms for node in result.nodes) <= result.profiled_ms


def test_nothing_is_left_behind_also_after_a_failure(make_model, tmp_path, monkeypatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    trace(make_model(), X, runs=1)
    ticks = itertools.count()

    def clock() -> int:
        if (now := next(ticks)) > 5:
            raise RuntimeError
        return now

    with pytest.raises(RuntimeError):
        trace(make_model(), X, runs=9, clock=clock)
    assert list(place.iterdir()) == []


def test_number_of_runs_follows_from_their_time(make_model) -> None:
    ticks = itertools.count(step=50_000_000)
    # 3 seconds for four runs of 50 ms each time.
    assert trace(make_model(), X, clock=lambda: next(ticks)).runs == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 0}, "At least 1 run is needed, and 0 were asked for"),
        ({"warmup": -1}, "no warm-up of -1 runs"),
    ],
)
def test_impossible_numbers_are_refused(make_model, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        trace(make_model(), X, **options)


def test_wrong_inputs_are_refused(make_model) -> None:
    with pytest.raises(UsageError, match="gets no value for its input 'x'"):
        trace(make_model(), {})


def test_runs_that_the_profiler_has_no_room_for(make_model, monkeypatch) -> None:
    """ONNX Runtime drops the events that come after the first million."""
    whole = profiler.read_profile
    monkeypatch.setattr(profiler, "read_profile", lambda *arguments: whole(*arguments)[:30])
    with pytest.raises(UsageError, match=r"no room for 59 runs of so many nodes\. Ask for fewer runs; 2 fit\."):
        trace(make_model(), X, runs=6, warmup=5)


def test_what_the_profiler_adds_is_what_the_clock_does_not_see() -> None:
    """By this clock every run takes as long, however many nodes it has, so that all that is recorded is added."""
    ticks = itertools.count(step=50_000)
    cost = measure_cost(threads=1, clock=lambda: next(ticks))
    assert cost.call_us == pytest.approx(0, abs=1e-6)
    assert 0 < cost.node_us + 2 * cost.tensor_us < 1000
    assert cost.between_us >= 0


def test_survives_json(make_model) -> None:
    result = trace(make_model(), X, runs=2)
    data = json.loads(json.dumps(result.to_json()))
    assert Trace.from_json(data) == result
    assert data["nodes"][0]["inputs"][0] == {"dtype": "float32", "shape": [2, 3, 8, 8]}


def test_json_of_another_release_or_damaged_is_refused(make_model) -> None:
    data = trace(make_model(), X, runs=1).to_json()
    with pytest.raises(DataError, match="schema version 99"):
        Trace.from_json({**data, "schema_version": 99})
    with pytest.raises(DataError, match="is damaged: 'nodes'"):
        Trace.from_json({key: value for key, value in data.items() if key != "nodes"})
