"""Real data in small: one digits task for all tests that only read it."""

from __future__ import annotations

import pytest
from hypothesis import settings

from onnxdistill.data import load_images
from onnxdistill.recipe import DataTable
from onnxdistill.tasks.classification import Classification

# The same examples every time, and no limit of time that a busy machine would miss.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def digits() -> Classification:
    """The digits task: 1,083 train, 64 calibration, 200 validation and 450 test images."""
    table = DataTable.model_validate({"source": "digits", "validation": 0.1485, "calibration": 64})
    return Classification(load_images(table, seed=0))
