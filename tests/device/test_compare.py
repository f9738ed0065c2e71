from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from onnxdistill.device import compare as module
from onnxdistill.device.compare import LOOKS, compare, interval, is_clear
from onnxdistill.device.session import SessionSettings
from onnxdistill.device.statistics import Ratio

Answer = Callable[[bool], float]


def measured(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> tuple[Ratio, list[bool]]:
    """Compares with made-up openings; returns the result and which openings were swapped."""
    swaps: list[bool] = []

    def opening(_pair: object, swapped: bool) -> float:
        swaps.append(swapped)
        return answer(swapped)

    monkeypatch.setattr(module._Pair, "opening", opening)
    return compare(Path("a"), Path("b"), SessionSettings()), swaps


def test_quantiles_are_students_for_three_looks() -> None:
    for openings, quantile in LOOKS.items():
        assert quantile == pytest.approx(student.ppf(1 - 0.05 / len(LOOKS) / 2, openings - 1), abs=1e-3)


def test_interval_by_hand() -> None:
    ratio = interval([1.0, 4.0], 1.0)
    # The mean of the logarithms is ln 2, their deviation sqrt(2) ln 2; over sqrt(2) openings that is a factor of 2.
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 1.0, 4.0))


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


def test_large_models_are_not_opened_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    swaps = 0

    def opening(_pair: object, swapped: bool) -> float:
        nonlocal now, swaps
        now += 1.3
        swaps += 1
        return module.NEEDED_SPEEDUP + (0.01 if swapped else -0.01)

    monkeypatch.setattr(module._Pair, "opening", opening)
    ratio = compare(Path("a"), Path("b"), SessionSettings(), clock=lambda: now)
    assert swaps == 8  # twenty would take 26 seconds
    assert not module.measurably_faster(ratio)


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
