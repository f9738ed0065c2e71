"""Calls of code that isn't ours: whatever it raises becomes a `NetworkError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnxdistill.errors import NetworkError, is_of_memory


@contextmanager
def explained(what: str, fix: str) -> Iterator[None]:
    """Turns any exception of the block into a `NetworkError`: `what`, then the exception, then `fix`.

    Args:
        what: What failed, without a full stop.
        fix: What the user can do about it; ends with a full stop.
    """
    try:
        yield
    except NetworkError:
        raise
    except Exception as error:  # the block runs a user's code, which can raise anything
        if is_of_memory(error):
            raise
        raise NetworkError(f"{what}: {described(error)}.", fix) from error


def described(error: BaseException) -> str:
    """The exception's type and message in one line, without a full stop."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(".: ")
