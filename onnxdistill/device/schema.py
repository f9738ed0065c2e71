"""Reading what a release has written as JSON: its schema version, and what is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from onnxdistill.errors import DataError


@contextmanager
def reading(what: str, data: Mapping[str, Any], version: int) -> Iterator[None]:
    """Checks the schema version, and explains what goes wrong with the data within the block.

    Args:
        what: Names it, as in "The WHAT is damaged".
        data: With the key `schema_version`.
        version: That this release reads.

    Raises:
        DataError: If the data is of another schema version, or lacks something.
    """
    found = data.get("schema_version")
    if found != version:
        raise DataError(
            f"The {what} has schema version {found}; this release reads {version}.",
            "Read it with the release that wrote it, or measure again.",
        )
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"The {what} is damaged: {error}.", "Measure again.") from error
