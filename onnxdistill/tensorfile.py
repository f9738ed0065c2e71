"""Files of tensors and plain values: whole, or refused; written at once, or not at all."""

from __future__ import annotations

import errno
import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from onnxdistill.errors import is_of_memory, origins


def save_tensors(content: Any, path: Path) -> None:
    """Writes a file; whenever the process is ended, there is this one or the one before.

    Args:
        content: Tensors and plain values, in dicts, lists and tuples.
        path: The file.

    Raises:
        OSError: If it cannot be written; nothing is left behind then.
        MemoryError: If there is no room for it beside the tensors.
    """
    # In memory first: torch's own writer turns a full disk into other errors.
    memory = io.BytesIO()
    try:
        torch.save(content, memory)
    except RuntimeError as error:
        if isinstance(error.__context__, MemoryError):  # torch finishes the file all the same, and fails at that
            raise MemoryError from error
        raise
    fresh = path.with_name(f"{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(memory.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def load_tensors(path: Path) -> Any:
    """Reads a file of `save_tensors`; no code that it may hold is run.

    Raises:
        ValueError: If it is damaged or something else; its text is the kind of error.
        OSError: If it cannot be read.
        MemoryError: If there is no room for it; torch's is a RuntimeError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not look at the checksums
        if damaged is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a place before its beginning, as a damaged one may name
            raise ValueError(type(error).__name__) from error
        error.filename = error.filename or str(path)  # an error in the middle of it names none
        raise
    except Exception as error:  # a damaged file can make the reader raise anything
        if is_of_memory(error):
            raise
        for one in origins(error):  # zipfile takes a disk that fails for a file of another kind
            if isinstance(one, OSError) and one.errno != errno.EINVAL:
                one.filename = one.filename or str(path)
                raise one from None
        raise ValueError(type(error).__name__) from error
    raise ValueError(f"checksum of {damaged}")
