from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxdistill.device.measuring import compare as module
from onnxdistill.device.measuring.compare import LOOK_CONFIDENCE, LOOKS, compare, is_clear, look
from onnxdistill.device.measuring.openings import Openings
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.session import SessionSettings

Answer = Callable[[bool], float]


def measured(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> tuple[Estimate, list[bool]]:
    """Compares with made-up openings; returns the result and which openings were swapped."""
    swaps: list[bool] = []

    def opening(openings: Openings, **_: object) -> None:
        swaps.append(len(swaps) % 2 == 1)
        ratio = answer(swaps[-1])
        openings.timings["before"].series.append(np.full((3, 1), ratio))
        openings.timings["after"].series.append(np.ones((3, 1)))

    monkeypatch.setattr(Openings, "open", lambda _: None)
    monkeypatch.setattr(Openings, "time", opening)
    return compare(Path("a"), Path("b"), SessionSettings()), swaps


def test_three_looks_share_what_may_err() -> None:
    assert len(LOOKS) * (1 - LOOK_CONFIDENCE) == pytest.approx(0.05)


@pytest.mark.parametrize("speedup", [0.5, 1.0, 1.5])
def test_a_clear_case_ends_at_the_first_look(monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
    ratio, swaps = measured(monkeypatch, lambda _: speedup)
    assert ratio.value == pytest.approx(speedup)
    assert swaps == [False, True, False, True]


def test_an_unclear_case_goes_on_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    # Right at the margin, no interval is clear.
    noise = iter([0.01, 0.01, -0.01, -0.01] * 5)
    ratio, swaps = measured(monkeypatch, lambda _: module.NEEDED_SPEEDUP + next(noise))
    assert len(swaps) == max(LOOKS)
    assert not is_clear(ratio)


def test_large_models_are_not_opened_for_ever() -> None:
    now = 0.0

    def opening() -> None:
        nonlocal now
        now += 1.3

    assert look(opening, lambda: False, clock=lambda: now) == 8  # twenty would take 26 seconds
    assert look(opening, lambda: False, seconds_at_most=1.0, clock=lambda: now) == 4  # the first look is always taken


def test_what_the_order_of_loading_does_cancels_and_widens_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio, _ = measured(monkeypatch, lambda swapped: 0.99 if swapped else 1 / 0.99)
    assert ratio.value == pytest.approx(1.0)
    assert ratio.low < 0.995
    assert ratio.high > 1.005


def test_equal_files_are_hardly_ever_called_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Openings that vary by 3 %, several times what is seen."""
    rng = np.random.default_rng(0)
    faster = sum(
        module.measurably_faster(measured(monkeypatch, lambda _: float(np.exp(rng.normal(0, 0.03))))[0])
        for _ in range(500)
    )
    assert faster <= 10
