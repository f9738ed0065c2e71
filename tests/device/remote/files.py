"""Files that are made for tests."""

from __future__ import annotations

from pathlib import Path

import onnx


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def externalize(path: Path, location: str) -> Path:
    """Moves the weights of a model into a file beside it."""
    (path.parent / location).parent.mkdir(exist_ok=True)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=location, size_threshold=0)
    return path
