from __future__ import annotations

from pathlib import Path

import pytest

from onnxdistill.device.profiling.counting import count_macs
from onnxdistill.errors import UsageError
from tests.onnxfiles import classifier, normal, saved, two_by_two

CLASSIFIER = 64 * (16 * 27 + 16 * 144) + 16 * 5


def test_by_hand(tmp_path: Path) -> None:
    content = classifier(tmp_path / "model.onnx").read_bytes()
    assert count_macs(content, {"image": normal(1, 3, 8, 8)}) == CLASSIFIER
    assert count_macs(content, {"image": normal(2, 3, 8, 8)}) == 2 * CLASSIFIER


def test_open_dimensions_count_as_they_are_run(tmp_path: Path) -> None:
    content = two_by_two(tmp_path / "two.onnx").read_bytes()
    feeds = {"sequence": normal(1, 11, 6), "extra": normal(1, 3)}
    assert count_macs(content, feeds) == 11 * 6 * 8 + 3 * 8 + 8 * 4


def test_a_recurrent_layer_is_not_known(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "rnn.onnx",
        "g (float[L,N,2] x) => (float[L,1,N,3] y) { y = RNN <hidden_size = 3> (x, w, r) }",
        {"w": normal(1, 3, 2), "r": normal(1, 3, 3)},
    )
    assert count_macs(path.read_bytes(), {"x": normal(4, 1, 2)}) is None


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="image"):
        count_macs(classifier(tmp_path / "model.onnx").read_bytes(), {"image": normal(1, 3, 9, 9)})
