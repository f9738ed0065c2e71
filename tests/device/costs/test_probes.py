from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxdistill.device.costs import measuring
from onnxdistill.device.costs.layers import DEPTHWISE, LayerKind, read_exported
from onnxdistill.device.costs.measuring import LayerClock
from onnxdistill.device.costs.probes import _fit, width_probe
from onnxdistill.device.profiling.profiler import Call
from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.errors import ProviderError

PLAIN = LayerKind("float32", (3, 3), (1, 1), 1, (1, 8, 8))
SEQUENCE = LayerKind("float32", (1, 9), (1, 1), 1, (2, 1, 100), sequence=True)
TRANSPOSED = LayerKind("float32", (2, 2), (2, 2), 1, (1, 8, 9), transposed=True)
KINDS = [
    (PLAIN, [(16, 32), (8, 24), (3, 16)]),
    (replace(PLAIN, kernel=(1, 7), stride=(1, 2)), [(16, 32), (20, 8)]),
    (replace(PLAIN, kernel=(2, 2), places=(2, 7, 9)), [(16, 32)]),
    (replace(PLAIN, groups=DEPTHWISE), [(16, 16), (24, 24)]),
    (replace(PLAIN, groups=2), [(16, 32), (32, 16)]),
    (LayerKind("float32", (1, 1), (1, 1), 1, (3, 1, 1), product=True), [(16, 32), (40, 10)]),
    (SEQUENCE, [(16, 32), (8, 24)]),
    (replace(SEQUENCE, stride=(1, 4), made=(1, 23)), [(16, 32)]),
    (replace(SEQUENCE, groups=DEPTHWISE), [(16, 16)]),
    (TRANSPOSED, [(16, 32), (40, 10)]),
    (replace(TRANSPOSED, kernel=(3, 3)), [(16, 32)]),
    (replace(TRANSPOSED, stride=(1, 1), kernel=(3, 3), made=(10, 11)), [(16, 32)]),
    (replace(TRANSPOSED, groups=2), [(16, 32)]),
    (replace(TRANSPOSED, groups=DEPTHWISE), [(16, 16)]),
    (replace(SEQUENCE, kernel=(1, 8), stride=(1, 4), transposed=True), [(16, 32)]),
]


@pytest.mark.parametrize(
    ("kind", "widths"),
    [(replace(kind, precision=one), widths) for kind, widths in KINDS for one in kind.precisions],
    ids=lambda value: str(value),
)
def test_a_probe_has_the_layers_that_were_asked_for(kind: LayerKind, widths: list[tuple[int, int]]) -> None:
    probe = width_probe(kind, widths)
    found = [layer for layer in read_exported(probe.content, probe.feeds).layers if layer.name.startswith("layer")]
    assert sorted((layer.inputs, layer.outputs) for layer in found) == sorted(widths)
    assert {layer.kind for layer in found} == {kind}


@pytest.mark.parametrize(
    ("axis", "fit"),
    [
        ((224, 112, 7, 2), (1, 3, 3, 1)),  # ResNet's first
        ((32, 16, 3, 2), (1, 1, 1, 1)),
        ((32, 32, 4, 1), (1, 1, 2, 0)),  # no two alike add up to 3
        ((100, 92, 9, 1), (1, 0, 0, 0)),
        ((32, 24, 3, 1), (4, 0, 0, 0)),  # 1 + 4 * 2 wide
        ((8, 5, 1, 1), (1, 0, 0, 0)),  # nothing makes it smaller
    ],
)
def test_paddings_are_alike_where_they_can_be(axis: tuple[int, int, int, int], fit: tuple[int, int, int, int]) -> None:
    assert astuple(_fit(*axis)) == fit


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 8), st.integers(1, 3), st.integers(1, 40))
def test_paddings_lead_to_the_size(kernel: int, stride: int, pad: int, dilation: int, size: int) -> None:
    """Of any convolution with paddings that are alike, as torch has them: theirs are alike, too, with strides."""
    made = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    assume(made > 0 and pad <= (kernel - 1) * dilation)
    fit = _fit(size, made, kernel, stride)
    assert (size + fit.begin + fit.end - fit.dilation * (kernel - 1) - 1) // stride + 1 == made
    # As much of a transposed one, which goes from the one to the other.
    assert (made - 1) * stride + fit.dilation * (kernel - 1) + 1 - fit.begin - fit.end + fit.added == size
    assert fit.added < stride
    assert fit.begin == fit.end or stride == 1


def test_activations_of_either_sign() -> None:
    probe = width_probe(replace(PLAIN, precision="int8"), [(16, 16)], "int8")
    assert probe.feeds["x"].dtype == np.int8
    assert open_session(probe.content).run(probe.feeds)["out0"].dtype == np.int8


def test_more_work_takes_longer() -> None:
    clock = LayerClock(SessionSettings(), "uint8")
    kind = replace(PLAIN, places=(1, 32, 32))
    times_ms = clock.times_ms(kind, [(16, 16), (64, 64)])
    assert 4 * times_ms[16, 16] < times_ms[64, 64] < 64 * times_ms[16, 16]
    # Each of several alike takes as long as one of them alone; loosely, since others may run.
    assert times_ms[64, 64] / 3 < clock.repeated_ms(kind, (64, 64), 3) < 3 * times_ms[64, 64]


@pytest.mark.parametrize(
    "kind", [SEQUENCE, replace(SEQUENCE, precision="int8"), TRANSPOSED, replace(TRANSPOSED, groups=2)], ids=str
)
def test_layers_of_sequences_and_transposed_ones_are_timed(kind: LayerKind) -> None:
    times_ms = LayerClock(SessionSettings(), "uint8").times_ms(kind, [(16, 16), (64, 128)])
    assert 0 < times_ms[16, 16] < times_ms[64, 128]


def test_layers_that_a_provider_joins_have_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    record = measuring.record_calls

    def joined(*arguments: Any, **settings: Any) -> list[list[Call]]:
        """As of a provider that compiles the network: one node, which has a name of its own."""
        found = []
        for calls in record(*arguments, **settings):
            names = [(*call.key[:-1], (call.key[-1][0], "OpenVINO-EP-subgraph_1_0")) for call in calls]
            found.append([replace(call, key=name) for call, name in zip(calls, names, strict=True)])
        return found

    monkeypatch.setattr(measuring, "record_calls", joined)
    with pytest.raises(ProviderError, match=r"runs layers as one, so that their times cannot be told apart"):
        LayerClock(SessionSettings(), "uint8").times_ms(PLAIN, [(16, 16)])


def test_nothing_takes_less_than_calling_a_node() -> None:
    kind = LayerKind("float32", (1, 1), (1, 1), 1, (1, 1, 1), product=True)
    times_ms = LayerClock(SessionSettings(), "uint8").times_ms(kind, [(1, 1), (4, 4)])
    assert min(times_ms.values()) > 0
