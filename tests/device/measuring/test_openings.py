"""Openings of a real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxdistill.device.cases import Case
from onnxdistill.device.feeds import random_feeds
from onnxdistill.device.measuring.openings import Openings
from onnxdistill.device.session import SessionSettings


def openings_of(path: Path, warmup_calls: int | None = None) -> Openings:
    rng = np.random.default_rng(0)
    cases = {"model": Case("model", path, SessionSettings(), 1)}
    return Openings(cases, lambda _, session: random_feeds(session, 1, {}, rng), rng, warmup_calls)


def test_a_model_is_warmed_up_again_for_a_time_not_for_a_few_calls(make_model: Callable[..., Path]) -> None:
    """Some dozen calls of a model of microseconds are over before the processor has woken up."""
    openings = openings_of(make_model())
    openings.time(calls=10)
    first = openings.timings["model"].warmup
    openings.open()
    again = openings.warm_up()["model"]
    assert again.calls == min(2000, int(50 / first.latency_ms)) > 200
    assert openings.timings["model"].warmup == first


def test_a_given_number_of_calls_is_made_in_every_opening(make_model: Callable[..., Path]) -> None:
    openings = openings_of(make_model(), warmup_calls=7)
    openings.time(calls=10)
    openings.open()
    assert openings.warm_up()["model"].calls == 7


def test_garbage_is_collected_once_and_not_in_every_opening(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[None] = []
    monkeypatch.setattr("onnxdistill.device.measuring.openings.gc.collect", lambda: collected.append(None))
    openings = openings_of(make_model(), warmup_calls=1)
    for _ in range(2):
        openings.open()
        openings.time(calls=2)
    assert len(collected) == 1
