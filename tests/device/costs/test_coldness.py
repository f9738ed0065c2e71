"""How cold weights are, from times that are made up, and with a pause that is really waited for."""

from __future__ import annotations

import json
import time

import pytest

from onnxdistill.device.costs.coldness import CacheLoad, Coldness, measure_coldness
from onnxdistill.device.costs.layers import LayerKind
from onnxdistill.device.costs.measuring import LayerClock
from onnxdistill.device.costs.probes import width_probe
from onnxdistill.device.profiling.profiler import record_calls
from onnxdistill.device.session import SessionSettings

LAYER_BYTES = 256 * 256 * 9 * 4
KIND = LayerKind("float32", (1, 1), (1, 1), 1, (1, 2, 2))


class MadeUp(LayerClock):
    """Where so many layers stay in the caches, for so long, and a cold one takes three times as long as a warm one."""

    def __init__(self, staying: int, half_after_ms: float) -> None:
        self.staying, self.half_after_ms = staying, half_after_ms

    def repeated_ms(self, kind: LayerKind, widths: tuple[int, int], count: int, pause_ms: float = 0.0) -> float:
        by_size = max(0.0, 1 - self.staying / count)
        by_time = min(1.0, pause_ms / (2 * self.half_after_ms))
        return 1.0 + 2.0 * (1 - (1 - by_size) * (1 - by_time))


def cold(share: float) -> float:
    """So long does a layer take."""
    return 1.0 + 2.0 * share


@pytest.mark.parametrize("staying", [1, 2, 4, 8])
@pytest.mark.parametrize("half_after_ms", [1.0, 2.0, 1e9])
def test_it_says_again_what_was_measured(staying: int, half_after_ms: float) -> None:
    clock = MadeUp(staying, half_after_ms)
    coldness = measure_coldness(clock)
    most = cold(1.0) if half_after_ms < 10 else clock.repeated_ms(KIND, (256, 256), 24)
    for count, pause_ms in ((4, 0.0), (4, 0.5), (4, 1.0), (4, 3.0), (4, 8.0), (8, 0.0), (24, 0.0)):
        measured_ms = clock.repeated_ms(KIND, (256, 256), count, pause_ms)
        # Seen from the pauses, whatever comes without one is there at once.
        interval_ms = pause_ms + count * measured_ms if pause_ms else 0.0
        share = coldness.at(CacheLoad(count * LAYER_BYTES, interval_ms))
        assert 1.0 + (most - 1.0) * share == pytest.approx(measured_ms)
    assert coldness.ms_per_byte == pytest.approx((most - 1.0) / LAYER_BYTES)


def test_where_nothing_gets_cold_or_nothing_takes_any_time() -> None:
    class Still(MadeUp):
        def repeated_ms(self, kind: LayerKind, widths: tuple[int, int], count: int, pause_ms: float = 0.0) -> float:
            return float(self.staying)

    assert measure_coldness(Still(1, 1.0)) == measure_coldness(Still(0, 1.0)) == Coldness((), ())


def test_what_would_fit_gets_cold_with_time_alone() -> None:
    coldness = measure_coldness(MadeUp(1000, 2.0))
    assert coldness.at(CacheLoad(24 * LAYER_BYTES, 0.0)) == 0.0
    assert coldness.at(CacheLoad(0, 100.0)) == 1.0


def test_it_rises_from_nothing_to_all() -> None:
    coldness = Coldness([1e6, 2e6, 4e6], [0.0, 0.5, 1.0])
    shares = {0: 0.0, 10**6: 0.0, 1_500_000: 0.25, 3 * 10**6: 0.75, 9 * 10**9: 1.0}
    assert {size: coldness.at(CacheLoad(size, 1.0)) for size in shares} == shares
    assert Coldness((), ()).at(CacheLoad(5, 5.0)) == 0.0


def test_size_and_time_together() -> None:
    coldness = Coldness((1e6, 2e6), (0.0, 1.0), (1.0, 3.0), (0.0, 0.8), 1e-9)
    assert [coldness.at(CacheLoad(0, interval_ms)) for interval_ms in (0.5, 2.0, 9.0)] == pytest.approx([0.0, 0.4, 0.8])
    assert coldness.at(CacheLoad(1_500_000, 2.0)) == pytest.approx(1 - 0.5 * 0.6)
    assert Coldness.from_json(json.loads(json.dumps(coldness.to_json()))) == coldness


def test_a_pause_is_waited_for() -> None:
    probe = width_probe(KIND, [(8, 8)])
    begin = time.perf_counter()
    record_calls(probe.content, SessionSettings(), probe.feeds, runs=3, warmup=2, pause_ms=40.0)
    assert time.perf_counter() - begin >= 5 * 0.04
