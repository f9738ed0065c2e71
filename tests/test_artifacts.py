"""What a run leaves in its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxdistill.artifacts import _write_arrays
from onnxdistill.device.feeds import read_inputs


def test_inputs_may_have_any_name(tmp_path: Path) -> None:
    arrays = {
        name: np.full((2, 3), place, np.float32) for place, name in enumerate(("file", "allow_pickle", "a/b", "x.1"))
    }
    _write_arrays(arrays, tmp_path / "samples.npz")
    found = read_inputs(tmp_path / "samples.npz")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
