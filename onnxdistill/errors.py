"""Every error that a user can meet, each with what went wrong, where, and what to do.

    OnnxDistillError
    ├── UsageError               exit code 2: the request cannot be carried out as it was made
    │   ├── RecipeError          a recipe does not read, or has wrong keys, types or values
    │   ├── DataError            data missing, empty, or unfit for the task
    │   ├── WeightsError         weights missing, damaged, or of another architecture
    │   ├── NetworkError         a network that cannot be built, traced or exported
    │   ├── ModelFileError       a file that ONNX Runtime cannot load or run
    │   ├── ProviderError        an execution provider that is unknown or not usable here
    │   ├── OutputError          an output place that cannot be written
    │   └── MissingPackageError  a package of an extra that is not installed
    └── ResultError              exit code 1: it ran, and the result is refused
        ├── FallbackError        a provider that left the model to the CPU
        ├── RegressionError      a model that misses a limit of its latency
        ├── LimitsMissedError    the student misses a limit of its recipe
        ├── TrainingError        the training diverged
        └── ParityError          two forms of a network that should agree do not

The command line prints the message as one paragraph and ends with `exit_code`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path


class OnnxDistillError(Exception):
    """The root of the tree: a failure that is explained to the user instead of shown as a traceback.

    Args:
        what: What went wrong and where, with the offending path, key or number; ends with a full stop.
        fix: What the user can do about it; ends with a full stop.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what} {fix}".strip())


class UsageError(OnnxDistillError):
    """The request cannot be carried out as it was made."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe does not read, or has wrong keys, types or values."""


class DataError(UsageError):
    """Data is missing, empty, or unfit for the task."""


class WeightsError(UsageError):
    """Weights are missing, damaged, or belong to another architecture."""


class NetworkError(UsageError):
    """A network cannot be built, traced or exported."""


class ModelFileError(UsageError):
    """A model file that ONNX Runtime cannot load or run."""


class ProviderError(UsageError):
    """An execution provider is unknown or not usable on this machine."""


class OutputError(UsageError):
    """An output place cannot be written."""


class MissingPackageError(UsageError):
    """A package that belongs to an extra is not installed."""


class ResultError(OnnxDistillError):
    """Everything ran, and the result is refused.

    Attributes:
        of_teacher: Whether it came before there was anything of a student, so that another one would end alike.
    """

    of_teacher = False


class FallbackError(ResultError):
    """An execution provider left the model to the CPU."""


class RegressionError(ResultError):
    """A model misses a limit of its latency; the message names the measured numbers."""


class LimitsMissedError(ResultError):
    """The student misses a limit of its recipe; the message names the measured numbers."""


class TrainingError(ResultError):
    """The training diverged."""


class ParityError(ResultError):
    """Two forms of a network that should agree do not."""


# In torch's errors of the processor's memory, which have no kind of their own; the rest hangs on the system. The second
# is C++'s, of whatever else torch wants memory for.
_OF_MEMORY = ("DefaultCPUAllocator: ", "bad_alloc")

_NO_ROOM = "Free space there, or choose another place."
_WAYS_OUT = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f).",
}


def is_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, which says nothing of the code or the file that it was wanted for."""
    return _of_memory(error) is not None


def origins(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and so on: what it was raised from, or else what was being handled then."""
    seen = set[int]()  # nothing keeps a user's code from making a circle of them
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _of_memory(error: BaseException) -> BaseException | None:
    """The error that is of memory: the first of those that led to this one."""
    found = None
    for one in origins(error):
        if (
            isinstance(one, MemoryError)
            or type(one).__name__ == "OutOfMemoryError"
            or (isinstance(one, RuntimeError) and any(text in str(one) for text in _OF_MEMORY))
        ):
            found = one
    return found


def memory_error(error: BaseException, keys: str = "") -> UsageError | None:
    """The paragraph for memory that does not suffice; None for errors of other kinds.

    Args:
        error: torch's are runtime errors, of the processor's memory without a kind of their own.
        keys: Of the recipe, that a smaller value may help of.
    """
    if (source := _of_memory(error)) is None:
        return None
    text = str(source)
    asked = text[text.find("you tried to allocate") :].partition(".")[0] if "you tried" in text else text
    smaller = f"Set a smaller {keys}" if keys else "Ask for a smaller batch or a smaller model"
    return UsageError(
        f"The memory of this machine does not suffice{f': {asked}' if asked else ''}.",
        f"{smaller}, or close other programs.",
    )


def cannot_write(place: Path | str, error: OSError | ValueError) -> OutputError:
    """The paragraph for what the operating system says about writing to a place."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    name = str(place).replace("\0", "\N{REPLACEMENT CHARACTER}")
    fix = _WAYS_OUT.get(error.errno or 0) if isinstance(error, OSError) else None
    return OutputError(f"{name} cannot be written: {reason}.", fix or "Choose another place.")


def explained(error: OSError, place: str) -> UsageError:
    """The paragraph for an error of the operating system that was not expected where it came up.

    Args:
        error: Names a file or not.
        place: Where it was, if it does not: only writing fails without a name.
    """
    if error.filename is None or error.errno in _WAYS_OUT:
        return cannot_write(error.filename or place, error)
    return UsageError(
        f"{error.filename} cannot be read or written: {error.strerror}.", "Check the path, and try again."
    )
