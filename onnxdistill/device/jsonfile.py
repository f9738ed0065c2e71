"""Results as JSON or as any text: written so that a reader never sees half of them, and read again."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnxdistill.errors import DataError, OutputError, cannot_write


def json_text(data: Mapping[str, Any]) -> str:
    """Plain JSON with a line per value, except that a list of numbers stays on one line."""
    return _render(data, 0) + "\n"


def check_place(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Makes sure, before any work is done, that a file could be written there.

    Args:
        path: A new file, a file to replace, or something to write into, as a pipe or /dev/null.
        inputs: Files that are read, and must not be replaced.

    Raises:
        OutputError: If the folder does not exist or may not be written, if the path is a folder or an input.
    """
    try:
        _check(path, inputs)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise cannot_write(path, error) from error


def _check(path: Path, inputs: Iterable[Path]) -> None:
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", "Name a file in it.")
    if any(path.exists() and one.exists() and path.samefile(one) for one in inputs):
        raise OutputError(f"{path} is to be read, and the result would replace it.", "Name a new file.")
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise OutputError(f"{path} cannot be written: no permission.", "Choose another place.")
        return
    folder = _target(path).parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}.", "Create the folder first.")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission in {folder}.", "Choose another place.")


def read_json(path: Path, what: str, writer: str) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Args:
        path: The file.
        what: It should be, as in "FILE is no WHAT".
        writer: The command that writes such files.

    Raises:
        DataError: If the file is missing, no JSON, or JSON of something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}.", f"Write one with {writer}.") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} is no {what}.", f"Write one with {writer}.")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes the text of `json_text`; see `write_text`.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_text(path, json_text(data))


def write_text(path: Path, text: str) -> None:
    """Writes under a temporary name beside the file, then renames; into a pipe or a device it writes as it is.

    A symbolic link stays, and the file that it points to is written.

    Raises:
        OutputError: If the file cannot be written.
    """
    check_place(path)
    try:
        if _is_special(path):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(_target(path), text)
    except OSError as error:
        raise cannot_write(path, error) from error


def _replace(target: Path, text: str) -> None:
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        # The temporary file is for its owner only; the result is an ordinary file.
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if error.errno != errno.EBUSY:
            raise
        target.write_text(text, encoding="utf-8")  # a file that is mounted by itself, into a container


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _render(value: object, indent: int) -> str:
    inner, outer = "  " * (indent + 1), "  " * indent
    if isinstance(value, Mapping) and value:
        items = [f"{inner}{json.dumps(key)}: {_render(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{outer}}}"
    if isinstance(value, list) and any(isinstance(item, Mapping | list | str) for item in value):
        items = [f"{inner}{_render(item, indent + 1)}" for item in value]
        return "[\n" + ",\n".join(items) + f"\n{outer}]"
    return json.dumps(value, allow_nan=False)
