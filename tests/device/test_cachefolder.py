"""Where caches lie."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from onnxdistill.device import cachefolder
from onnxdistill.device.cachefolder import cache_folder, keep


def without_home(_path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_places_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONNXDISTILL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder("calibrations") == Path("/home/somebody/.cache/onnxdistill/calibrations")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "expanduser", without_home)
    assert cache_folder("calibrations") == Path(tempfile.gettempdir()) / "onnxdistill" / "calibrations"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder("calibrations") == Path("/caches/onnxdistill/calibrations")
    monkeypatch.setenv("ONNXDISTILL_CACHE", "/mine")
    assert cache_folder("calibrations") == Path("/mine/calibrations")


def test_what_was_used_longest_ago_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cachefolder, "MOST_BYTES", 25)
    for age, name in ((30, "a.npz"), (10, "b.npz"), (20, "c.npz")):
        keep(tmp_path / name, bytes(10), most=3)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    keep(tmp_path / "d.npz", bytes(10), most=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.npz", "d.npz"]
    keep(tmp_path / "e.npz", bytes(100), most=3)  # too large: but it is what was made last
    assert [path.name for path in tmp_path.iterdir()] == ["e.npz"]
