"""Where caches lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxdistill.device.cachefolder import cache_folder


def test_places_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONNXDISTILL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder("calibrations") == Path("/home/somebody/.cache/onnxdistill/calibrations")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder("calibrations") == Path("/caches/onnxdistill/calibrations")
    monkeypatch.setenv("ONNXDISTILL_CACHE", "/mine")
    assert cache_folder("calibrations") == Path("/mine/calibrations")
