"""The files below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from onnxdistill.errors import DataError


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, in order; symbolic links to folders are followed, once each.

    Raises:
        DataError: If a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.", "Make it readable.") from error

    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, file) for file in files]
    return sorted(found)
