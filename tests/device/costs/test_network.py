from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from onnxdistill.device.costs.coldness import CacheLoad, Coldness
from onnxdistill.device.costs.deviceprofile import DeviceProfile, profile_device
from onnxdistill.device.costs.layers import Layer, LayerKind, pair_of, read_exported, work_of_layer, work_of_node
from onnxdistill.device.costs.network import (
    NetworkCosts,
    OtherNode,
    _run_ms,
    deployed_layers,
    layer_times_ms,
    network_costs,
)
from onnxdistill.device.costs.surface import Surface
from onnxdistill.device.host import read_host
from onnxdistill.device.measuring.compare import compare
from onnxdistill.device.profiling.operators import multiplies
from onnxdistill.device.profiling.trace import trace
from onnxdistill.device.session import SessionSettings
from tests.device.costs.models import FEEDS, network

KIND = LayerKind("float32", (1, 1), (1, 1), 1, (1, 10, 10))
# Half of the weights in the caches at 16 KiB, none at 64.
PROFILE = DeviceProfile(
    host=read_host(),
    threads=1,
    provider="cpu",
    activations="uint8",
    # Half of the 16 KiB of a layer then take 1.5 ms.
    coldness=Coldness([0, 16384, 65536], [0.0, 0.5, 1.0], ms_per_byte=3 / 16384),
    surfaces={KIND: Surface({(64, 64): 4.0, (32, 64): 2.0, (64, 32): 2.0, (32, 32): 1.0})},
)
WIDE = Layer("a", KIND, 64, 64)  # 16 KiB
COSTS = NetworkCosts((WIDE,), {"a": 1.5}, (OtherNode("add_1", 0.5, 0.1),), 0.25, 6.75)


def test_the_network_as_it_is() -> None:
    assert COSTS.load == CacheLoad(16384, 6.75)
    assert COSTS.time_ms(PROFILE, [WIDE], {"add": 1.0}) == pytest.approx(1.5 * 4 + 0.5 + 0.25)


def test_narrower_layers_have_more_of_the_caches_and_other_nodes_less_to_do() -> None:
    narrow = replace(WIDE, inputs=32, outputs=32)  # 4 KiB: an eighth is out of the caches, a quarter of what was
    # Of the 2 ms that it takes longer than alone, 1.5 are from that, and 0.4, a tenth of its time, go with that. Of the
    # 0.1 that are left there remains half for as many outputs, and of that half for the weights: the root of a quarter.
    expected = 1.1 * 1.0 + 1.5 / 4 / 4 + 0.1 / 2 / 2 + 0.1 + 0.4 * 0.5 + 0.25
    assert COSTS.time_ms(PROFILE, [narrow], {"add": 0.5}) == pytest.approx(expected)
    # A layer that is gone costs nothing; a node of another name changes as the mean of all.
    assert COSTS.time_ms(PROFILE, [], {"x": 0.2, "y": 0.4}) == pytest.approx(0.1 + 0.4 * 0.3 + 0.25)


def test_a_faster_network_finds_more_of_its_weights_in_the_caches() -> None:
    """However few they are: half have gone after 4 ms, and all after 8."""
    coldness = Coldness([0, 10**9], [0.0, 1.0], [0.0, 8.0], [0.0, 1.0], ms_per_byte=1 / 16384)
    profile = replace(PROFILE, coldness=coldness)
    costs = NetworkCosts((WIDE,), {"a": 2.0}, (), 0.0, 8.0)
    assert costs.time_ms(profile, [WIDE], {}) == pytest.approx(8.0)
    # Of the 4 ms that it takes longer than alone, 1 is from cold weights, and 0.4 go with its time.
    narrow = replace(WIDE, inputs=32, outputs=64)
    assert costs.layer_ms(profile, narrow) == pytest.approx(2 * 1.1 + 0.5 + 2.6)
    assert costs.layer_ms(profile, narrow, CacheLoad(8192, 4.0)) == pytest.approx(2 * 1.1 + 0.25 + 2.6 / 2**0.5)
    # It takes so long and then half of its weights, times the share that has gone after just that time.
    warm_ms = 2 * 1.1 + 2.6 / 2**0.5
    assert costs.time_ms(profile, [narrow], {}) == pytest.approx(warm_ms / (1 - 0.5 / 8), rel=1e-4)


def test_what_a_network_takes_longer_than_in_its_trace_is_from_cold_weights_first(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx")
    exported, traced = read_exported(path, FEEDS), trace(path, FEEDS, runs=10)
    layers = deployed_layers(exported.layers, traced)
    profile = profile_device(layers, SessionSettings(), 16, cached=False)
    weight_bytes = sum(layer.weight_bytes for layer in layers)
    cold = replace(profile, coldness=Coldness([0, 1], [0.0, 1.0], ms_per_byte=1.0))  # as much as anyone could ask
    # Layers that seem to take less than any node add to what a run comes to.
    quickest_ms = min(node.time_ms for node in traced.nodes)
    for seen in (traced, replace(traced, call_ms=quickest_ms + traced.run_ms / 10)):
        run_ms = _run_ms(seen)
        costs, plain = (network_costs(layers, seen, cold, times * run_ms) for times in (2, 1))
        for layer in layers:
            added_ms = (costs.corrections[layer.name] - plain.corrections[layer.name]) * cold.time_ms(layer)
            assert added_ms == pytest.approx(run_ms * layer.weight_bytes / weight_bytes, rel=0.01)
        assert costs.overhead_ms == pytest.approx(plain.overhead_ms)
        assert costs.slowdown == pytest.approx(1.0)
        whole_ms = costs.time_ms(cold, layers, dict.fromkeys(exported.sizes, 1.0))
        assert whole_ms == pytest.approx(2 * run_ms, rel=1e-2)


def test_what_weights_do_not_explain_goes_with_what_is_made_and_with_all_weights() -> None:
    plain = replace(PROFILE, coldness=Coldness((), ()))
    narrow = replace(WIDE, inputs=32, outputs=32)
    # Of half of 4 ms, a tenth of its time goes with that.
    assert COSTS.layer_ms(plain, narrow, CacheLoad(4096, 1.0)) == pytest.approx(1.1 + 1.6 / 2 / 2)
    assert COSTS.layer_ms(plain, narrow, CacheLoad(2 * 16384, 1.0)) == pytest.approx(1.1 + 1.6 / 2)
    little = replace(COSTS, corrections={"a": 1.04})
    assert little.layer_ms(plain, narrow, CacheLoad(4096, 1.0)) == pytest.approx(1.04)
    # What all nodes take longer, for no reason that is known, they do at any width.
    slower = replace(COSTS, slowdown=1.2)
    assert slower.layer_ms(plain, narrow, CacheLoad(4096, 1.0)) == pytest.approx(1.32 + (1.5 - 1.32) * 4 / 2 / 2)


def test_a_pair_makes_two_tensors() -> None:
    """What both layers of a low-rank pair take longer than alone goes with what each of them makes, in its places."""
    kind = LayerKind("float32", (3, 3), (2, 2), 1, (2, 10, 10))
    layer = Layer("a", kind, 64, 64)
    first, second = pair_of(layer, 16, spatial=True)
    surfaces = {one.kind: Surface({(one.inputs, one.outputs): time_ms}) for one, time_ms in
                ((layer, 4.0), (first, 1.0), (second, 2.0))}  # fmt: skip
    profile = replace(PROFILE, coldness=Coldness((), ()), surfaces=surfaces)
    costs = NetworkCosts((layer,), {"a": 1.5}, (), 0.0, 6.0)
    load = CacheLoad(layer.weight_bytes, 6.0)
    # Of 1.6 ms for 64 channels of 5 x 5 places: 16 of 5 x 10, and 64 of 5 x 5.
    assert costs.layer_ms(profile, first, load) == pytest.approx(1.1 + 1.6 / 2)
    assert costs.layer_ms(profile, second, load) == pytest.approx(1.1 * 2 + 1.6)
    # The other kind of pair makes both of 5 x 5.
    first, second = pair_of(layer, 16, spatial=False)
    surfaces = {kind: Surface({(64, 64): 4.0, (64, 16): 1.0}), second.kind: Surface({(16, 64): 2.0})}
    profile = replace(profile, surfaces=surfaces)
    assert costs.layer_ms(profile, first, load) == pytest.approx(1.1 + 1.6 / 4)
    assert costs.layer_ms(profile, second, load) == pytest.approx(1.1 * 2 + 1.6)
    # Cold weights are shared by their number: of 9 * 64 * 64 there are left 9 * 64 * 16 and 16 * 64.
    cold = replace(profile, coldness=Coldness([0, 1], [0.0, 1.0], ms_per_byte=1.0))
    assert costs.layer_ms(cold, first, load) == pytest.approx(1.0 + 2.0 / 4)
    assert costs.layer_ms(cold, second, load) == pytest.approx(2.0 + 2.0 / 36)


def test_groups_that_have_gone_take_their_share() -> None:
    kind = replace(KIND, groups=4)
    layer = Layer("a", kind, 64, 64)
    profile = replace(PROFILE, coldness=Coldness((), ()), surfaces={kind: Surface({(64, 64): 4.0}, 4)})
    costs = NetworkCosts((layer,), {"a": 1.5}, (), 0.0, 6.0)
    half = replace(layer, kind=replace(kind, groups=2), inputs=32, outputs=32)
    assert costs.layer_ms(profile, half, CacheLoad(layer.weight_bytes // 4, 6.0)) == pytest.approx((4.4 + 1.6 / 2) / 2)


def test_what_a_network_takes_less_than_in_its_trace_comes_from_what_was_cold_there(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx")
    traced = replace(trace(path, FEEDS, runs=10), call_ms=0.0)
    # On a busy machine a node may seem to take no time.
    traced = replace(traced, nodes=tuple(replace(node, time_ms=max(0.001, node.time_ms)) for node in traced.nodes))
    layers = deployed_layers(read_exported(path, FEEDS).layers, traced)
    times_ms = layer_times_ms(layers, traced)
    # One layer takes twice as long as alone, and all others as long.
    alone_ms = {layer.name: float(times_ms[layer.name] or 0.0) / (2 if layer is layers[0] else 1) for layer in layers}
    surfaces = {layer.kind: Surface({(layer.inputs, layer.outputs): alone_ms[layer.name]}) for layer in layers}
    profile = replace(PROFILE, coldness=Coldness((), ()), surfaces=surfaces)
    first, *others = (layer.name for layer in layers)
    costs = network_costs(layers, traced, profile, traced.run_ms - alone_ms[first] / 4)
    assert (costs.corrections[first], costs.slowdown) == (pytest.approx(1.75), pytest.approx(1.0))
    assert [costs.corrections[name] for name in others] == pytest.approx([1.0] * len(others))
    assert costs.overhead_ms == pytest.approx(traced.overhead_ms)
    # What cannot come from there comes from all of it.
    costs = network_costs(layers, traced, profile, (traced.run_ms - alone_ms[first]) / 2)
    assert list(costs.corrections.values()) == pytest.approx([0.5] * len(layers))
    assert costs.slowdown == 1.0
    assert costs.overhead_ms == pytest.approx(traced.overhead_ms / 2)


@pytest.mark.parametrize("correction", [0.8, 1.0])
def test_what_is_not_slower_than_alone_stays_as_it_is(correction: float) -> None:
    costs = NetworkCosts((WIDE,), {"a": correction}, (), 0.0, 4.0)
    assert costs.layer_ms(PROFILE, replace(WIDE, inputs=32, outputs=32), CacheLoad(4096, 1.0)) == pytest.approx(
        correction
    )


def test_a_real_network_adds_up_to_what_it_takes(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx")
    exported, traced = read_exported(path, FEEDS), trace(path, FEEDS, runs=10)
    layers = deployed_layers(exported.layers, traced)
    profile = profile_device(layers, SessionSettings(), 16, cached=False)
    as_it_is = dict.fromkeys(exported.sizes, 1.0)
    costs = network_costs(layers, traced, profile)
    assert costs.time_ms(profile, layers, as_it_is) == pytest.approx(traced.run_ms, rel=1e-2)
    doubled = network_costs(layers, traced, profile, 2 * traced.run_ms)
    assert doubled.time_ms(profile, layers, as_it_is) == pytest.approx(2 * traced.run_ms, rel=1e-2)
    # Where no weights get cold, all nodes take longer alike, down to those that have nothing to do.
    profile = replace(profile, coldness=Coldness((), ()))
    traced = replace(traced, call_ms=1e-6)  # on a busy machine a node may seem to take less than any does
    traced = replace(traced, nodes=tuple(replace(node, time_ms=max(1e-3, node.time_ms)) for node in traced.nodes))
    plain, doubled = (network_costs(layers, traced, profile, times * _run_ms(traced)) for times in (1, 2))
    assert doubled.corrections == pytest.approx({name: 2 * share for name, share in plain.corrections.items()})
    assert doubled.slowdown == pytest.approx(2.0)
    calls_ms = [[node.scaled_ms(0.0) for node in costs.others] for costs in (plain, doubled)]
    assert calls_ms[1] == pytest.approx([2 * call_ms for call_ms in calls_ms[0]])


def test_layers_that_run_within_other_nodes_are_counted_once(tmp_path: Path) -> None:
    """A product that ONNX Runtime has made a part of something else: its time is in that one's already."""
    path = network(tmp_path / "m.onnx")
    exported, traced = read_exported(path, FEEDS), trace(path, FEEDS, runs=10)
    layers = deployed_layers(exported.layers, traced)
    profile = profile_device(layers, SessionSettings(), 16, cached=False)
    strided = next(layer for layer in layers if layer.name == "strided")
    (within,) = (node for node in traced.nodes if (found := work_of_node(node)) and found[1] == work_of_layer(strided))
    traced = replace(traced, call_ms=0.0)  # on a busy machine a node may seem to take less than any does
    points = {(strided.inputs, strided.outputs): within.time_ms / 2}
    profile = replace(profile, surfaces={**profile.surfaces, strided.kind: Surface(points)})
    nodes = tuple(replace(node, op_type="Attention") if node is within else node for node in traced.nodes)
    costs = network_costs(layers, replace(traced, nodes=nodes), profile)
    assert costs.corrections["strided"] == 1.0
    as_it_is = dict.fromkeys(exported.sizes, 1.0)
    assert costs.time_ms(profile, layers, as_it_is) == pytest.approx(traced.run_ms, rel=1e-2)
    # If all takes twice as long, so does it.
    still = replace(profile, coldness=Coldness((), ()))
    seen = replace(traced, nodes=nodes)
    slower = network_costs(layers, seen, still, 2 * _run_ms(seen))
    assert slower.corrections["strided"] == pytest.approx(2.0)
    assert slower.time_ms(still, layers, as_it_is) == pytest.approx(2 * _run_ms(seen), rel=1e-2)
    # None of it is taken from nodes that multiply nothing.
    times_ms = {node.name: node.time_ms for node in costs.others}
    plain_ms = {node.name: node.time_ms for node in traced.nodes if not multiplies(node.op_type)}
    assert plain_ms
    assert {name: times_ms[name] for name in plain_ms} == pytest.approx(plain_ms)
    assert times_ms[within.name] == pytest.approx(within.time_ms / 2)
    # What is nowhere, as what hangs on constants alone, takes nothing.
    folded = replace(traced, nodes=tuple(node for node in nodes if node.name != within.name))
    assert network_costs(layers, folded, profile).corrections["strided"] == 0.0


def test_layers_that_take_less_than_any_node_add_up_all_the_same(tmp_path: Path) -> None:
    """On a busy machine, what the profiler costs is taken off short nodes until less is left than a call takes."""
    path = network(tmp_path / "m.onnx")
    exported, traced = read_exported(path, FEEDS), trace(path, FEEDS, runs=10)
    layers = deployed_layers(exported.layers, traced)
    busy = replace(traced, call_ms=10 * traced.run_ms)
    times_ms = layer_times_ms(layers, busy, 1.0)
    total_ms = sum(time_ms for time_ms in times_ms.values() if time_ms is not None)
    assert 0.9 < total_ms <= 1.0 + 1e-9  # all of it, where the trace saw no overhead
    profile = profile_device(layers, SessionSettings(), 16, cached=False)
    costs = network_costs(layers, busy, profile, 1.0)
    assert costs.time_ms(profile, layers, dict.fromkeys(exported.sizes, 1.0)) == pytest.approx(1.0, rel=1e-2)


def test_a_narrower_network_is_predicted(tmp_path: Path) -> None:
    """Half as wide: a third of the multiply-adds, and the same nodes. Loosely, since others may run meanwhile.

    As predictions are used: how many times faster, beside files that are opened and timed in turns. A session's own
    time alone differs by half from one opening to the next on some machines, whatever is predicted.
    """
    wide, narrow = network(tmp_path / "wide.onnx", 64), network(tmp_path / "narrow.onnx", 32)
    before, after = read_exported(wide, FEEDS), read_exported(narrow, FEEDS)
    sizes = {name: after.sizes[name] / size for name, size in before.sizes.items()}
    speedups = []
    for _ in range(3):
        traced = trace(wide, FEEDS)
        layers = deployed_layers(before.layers, traced)
        profile = profile_device(layers, SessionSettings(), 16, cached=False)
        speedups.append(traced.run_ms / network_costs(layers, traced, profile).time_ms(profile, after.layers, sizes))
    measured = compare(wide, narrow, SessionSettings(), batch=len(FEEDS["x"]), inputs=FEEDS, until="close")
    assert measured.value > 2.0  # a network that was not faster would be no test
    assert median(speedups) == pytest.approx(measured.value, rel=0.3)
