"""Memory between the steps of a training."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import AbstractContextManager

import pytest
import torch

from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import memory, train
from onnxdistill.training.memory import memory_kept
from tests.training.small import small_network, table

FAULTS = """
import contextlib, resource
import torch
from onnxdistill.training.memory import memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults()  # the first ones are those of torch as well
before = faults()
with contextlib.suppress(ValueError), memory_kept():
    faults()
    within = faults()
    holding = resident_bytes()
    raise ValueError
freed = holding - resident_bytes()
print(before, within, freed)
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's malloc")


def _faults(**settings: str) -> list[int]:
    """Page faults before the block and within it; and the bytes that went back at its end."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(memory.SETTINGS)}
    code = [sys.executable, "-c", FAULTS]
    found = subprocess.run(code, capture_output=True, text=True, check=True, env={**plain, **settings})
    return [int(number) for number in found.stdout.split()]


@needs_glibc
def test_pages_are_kept_within_and_go_back_after() -> None:
    before, within, freed_bytes = _faults()
    assert within < before / 4
    assert freed_bytes > 2**25


@needs_glibc
def test_settings_of_the_user_stay() -> None:
    before, within, _ = _faults(MALLOC_MMAP_THRESHOLD_="65536")
    assert within > before / 2


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory._glibc() is None
    with memory_kept():
        pass


def test_a_training_keeps_its_memory(digits: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []

    class Noted(AbstractContextManager[None]):
        def __enter__(self) -> None:
            events.append("kept")

        def __exit__(self, *_: object) -> None:
            events.append("back")

    network = small_network()
    network.register_forward_hook(lambda *_: events.append("forward") if torch.is_grad_enabled() else None)
    monkeypatch.setattr("onnxdistill.training.run.memory_kept", Noted)
    train(network, digits, table(epochs=1), 0, Objective())
    assert events[0] == "kept"
    assert events[-1] == "back"
    assert set(events[1:-1]) == {"forward"}
