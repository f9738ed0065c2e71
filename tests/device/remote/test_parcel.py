from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxdistill.device.remote.parcel import pack, read_request
from onnxdistill.device.verdicts import Slo
from onnxdistill.errors import ModelFileError, UsageError
from tests.device.remote.files import externalize


def test_only_files_beside_the_model_are_sent(make_model: Callable[..., Path], tmp_path: Path) -> None:
    inside, outside = externalize(make_model("m/a.onnx"), "w.bin"), externalize(make_model("b.onnx"), "w.bin")
    shutil.move(outside, tmp_path / "m/b.onnx")  # the same weights beside it
    (tmp_path / "secret").write_text("s")
    (tmp_path / "m/link").symlink_to(tmp_path / "secret")
    for name in ("../secret", str(tmp_path / "secret"), "link"):
        location = b"\x0a\x08location\x12" + bytes([len(name)]) + name.encode()
        with (tmp_path / "m/b.onnx").open("ab") as file:
            file.write(location)
    parcel = pack("bench", {"a": inside, "b": tmp_path / "m/b.onnx"}, {}, tmp_path)
    sent = {name for name in parcel.files if name.startswith("models/")}
    assert sent == {"models/0/a.onnx", "models/0/b.onnx", "models/0/w.bin"}
    text = "/tmp/x/models/0/a.onnx, /tmp/x/models/0/w.bin, /tmp/y"
    assert parcel.as_known_here(text, "/tmp/x") == f"{inside}, {tmp_path}/m/w.bin, /tmp/y"


def test_a_model_in_a_cache_of_links(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = externalize(make_model("blobs/a.onnx"), "w.bin")
    (tmp_path / "snapshot").mkdir()
    for name in ("a.onnx", "w.bin"):
        (tmp_path / "snapshot" / name).symlink_to(model.parent / name)
    parcel = pack("bench", {"a": tmp_path / "snapshot/a.onnx"}, {}, tmp_path)
    assert parcel.sizes_bytes["models/0/w.bin"] == (model.parent / "w.bin").stat().st_size


def test_options_arrive_as_they_were(make_model: Callable[..., Path], tmp_path: Path) -> None:
    options = {"threads": [1, 2], "runs": None, "slo": Slo(95.0, 2.5), "shapes": {"x": [1, 2]}, "earlier": None}
    inputs = {"file": np.arange(3, dtype=np.int8), "b/c": np.array(["x", "yz"])}
    parcel = pack("bench", {"m": make_model()}, {**options, "inputs": inputs}, tmp_path)
    (there := tmp_path / "there").mkdir()
    for name in ("request.json", "inputs.npz"):
        content = parcel.files[name]
        (there / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    work, models, arrived = read_request(there)
    assert work == "bench"
    assert models == {"m": there / "models/0/model.onnx"}
    arrays = arrived.pop("inputs")
    assert arrived == options
    assert list(arrays) == list(inputs)
    assert all(np.array_equal(arrays[name], array) for name, array in inputs.items())
    with pytest.raises(UsageError, match="'x' is an array of Python objects"):
        pack("bench", {"m": make_model()}, {"inputs": {"x": np.array([{}])}}, tmp_path)


def test_a_model_that_shrinks_on_the_way(make_model: Callable[..., Path], tmp_path: Path) -> None:
    parcel = pack("bench", {"m": (model := make_model())}, {}, tmp_path)
    os.truncate(model, 10)
    with (tmp_path / "stream").open("wb") as stream, pytest.raises(ModelFileError, match="became shorter"):
        parcel.send(stream, lambda _sent, _total: None)
