"""Real data in small: one digits task for all tests that only read it."""

from __future__ import annotations

import os

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


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test finds what another run has left."""
    os.environ["ONNXDISTILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def digits() -> Classification:
    """The digits task: 1,083 train, 64 calibration, 200 validation and 450 test images."""
    table = DataTable.model_validate({"source": "digits", "validation": 0.1485, "calibration": 64})
    return Classification(load_images(table, seed=0))
