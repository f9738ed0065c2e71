"""The work on the other machine, in a process that `receiver` starts: tells its progress, then result or error."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

from onnxdistill.device.remote.parcel import read_request
from onnxdistill.device.remote.receiver import tell
from onnxdistill.device.remote.work import WORK
from onnxdistill.errors import OnnxDistillError, UsageError, explained

# Sending a line is work for this machine, too, which a timed call should seldom meet.
_SECONDS_BETWEEN = 1.0


def main(folder: Path) -> None:
    """Runs the request that lies in a folder, and tells how it goes."""
    events = os.fdopen(os.dup(1), "wb")
    # Whatever libraries print goes where it does not mix with events.
    os.dup2(2, 1)
    try:
        work, models, options = read_request(folder)
        result = WORK[work](models, **options, on_progress=_Progress(events))
    except OnnxDistillError as error:
        _tell_error(events, error)
    except MemoryError:
        _tell_error(
            events,
            UsageError("Its memory does not suffice.", "Ask for a smaller batch, or close other programs there."),
        )
    except OSError as error:
        _tell_error(events, explained(error, str(folder)))
    else:
        tell(events, result=result.to_json())


def _tell_error(events: BinaryIO, error: OnnxDistillError) -> None:
    tell(events, error={"class": type(error).__name__, "what": error.what, "fix": error.fix})


class _Progress:
    def __init__(self, events: BinaryIO) -> None:
        self._events = events
        self._phase = ""
        self._told_s = 0.0

    def __call__(self, phase: str, done: float, total: float) -> None:
        now = time.monotonic()
        if phase == self._phase and done < total and now - self._told_s < _SECONDS_BETWEEN:
            return
        self._phase, self._told_s = phase, now
        tell(self._events, progress=[phase, float(done), float(total)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
