"""Writing a JSON file so that a reader never sees half of it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxdistill.errors import OutputError


def json_text(data: Mapping[str, Any]) -> str:
    """Plain JSON with a line per value, except that a list of numbers stays on one line."""
    return _render(data, 0) + "\n"


def check_place(path: Path) -> None:
    """Makes sure, before any work is done, that a file could be written there.

    Raises:
        OutputError: If the folder does not exist or may not be written, or if the path is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", "Name a file in it.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}.", "Create the folder first.")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission in {folder}.", "Choose another place.")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes under a temporary name beside the file, then renames.

    Raises:
        OutputError: If the file cannot be written.
    """
    check_place(path)
    target = path.absolute()
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(json_text(data))
        # The temporary file is for its owner only; the result is an ordinary file.
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from error


def _render(value: object, indent: int) -> str:
    inner, outer = "  " * (indent + 1), "  " * indent
    if isinstance(value, Mapping) and value:
        items = [f"{inner}{json.dumps(key)}: {_render(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{outer}}}"
    if isinstance(value, list) and any(isinstance(item, Mapping | list | str) for item in value):
        items = [f"{inner}{_render(item, indent + 1)}" for item in value]
        return "[\n" + ",\n".join(items) + f"\n{outer}]"
    return json.dumps(value, allow_nan=False)
