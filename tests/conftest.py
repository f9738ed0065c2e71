"""What all tests share: the digits task for those that only read it, their surroundings and their order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from onnxdistill.data import load_images
from onnxdistill.recipe import DataTable
from onnxdistill.tasks.classification import Classification

# The same examples every time, and no limit of time that a busy machine would miss.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

# The networks are small: on a machine that others use, too, threads that wait for each other take many times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that the tests start
torch.set_num_threads(1)

# Side by side, whoever begins a long file last lets the others wait.
LONGEST_FIRST = (
    "stages/test_plan.py",
    "compress/test_promises.py",
    "compress/test_whole_runs.py",
    "compress/test_surroundings.py",
    "test_wheel.py",
    "device/remote/test_bench.py",
    "training/test_team.py",
    "test_front.py",
    "device/costs/test_deviceprofile.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The same order in every process, which several of them have to agree on."""
    if gone := [name for name in LONGEST_FIRST if not (Path(__file__).parent / name).is_file()]:
        raise pytest.UsageError(f"tests/conftest.py names files first that are gone: {', '.join(gone)}")
    places = {f"tests/{name}": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test finds what another run has left."""
    os.environ["ONNXDISTILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def brief_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons end at the first look: for tests that need no closer ratio."""
    monkeypatch.setattr("onnxdistill.device.measuring.compare.LOOKS", (4,))


@pytest.fixture(scope="session")
def digits() -> Classification:
    """The digits task: 1,083 train, 64 calibration, 200 validation and 450 test images."""
    table = DataTable.model_validate({"source": "digits", "validation": 0.1485, "calibration": 64})
    return Classification(load_images(table, seed=0))
