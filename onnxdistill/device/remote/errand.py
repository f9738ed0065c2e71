"""Work on another machine, over the system's `ssh`: nothing of onnxdistill has to be installed there.

The other machine needs Python, numpy and ONNX Runtime. `parcel` is sent to its `receiver`, which has `runner` do the
work in a temporary folder. What comes back is read as JSON and is never run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from onnxdistill.device.remote.connection import Connection, default_ssh
from onnxdistill.device.remote.failures import explain_end, explain_killed, garbage, printable, rebuilt
from onnxdistill.device.remote.machine import Machine, parse_target
from onnxdistill.device.remote.parcel import Parcel, pack
from onnxdistill.errors import DataError

Result = TypeVar("Result")
OnProgress = Callable[[str, float, float], None]


def run_remotely(
    target: str,
    work: str,
    models: Mapping[str, Path],
    options: Mapping[str, Any],
    read: Callable[[Mapping[str, Any]], Result],
    on_progress: OnProgress | None = None,
    *,
    ssh: Sequence[str] | None = None,
) -> Result:
    """Has work done on another machine.

    Everything that is sent lies in a temporary folder there, which is removed at the end, however it comes.

    Args:
        target: See `parse_target`.
        work: See `work.WORK`.
        models: Files of this machine by name, which are sent with their external data.
        options: Keyword arguments of the work.
        read: Makes the result of its JSON.
        on_progress: As of the work, with one more phase at the begin: `"send"`, in bytes.
        ssh: The program with further arguments; if left out, what the environment variable `ONNXDISTILL_SSH` says,
            or `ssh`.

    Raises:
        UsageError: If the machine cannot be reached or used, or the work came to no end there.
        OnnxDistillError: Whatever the work raised there, of the same class.
    """
    machine = parse_target(target)
    command = default_ssh() if ssh is None else ssh
    report = on_progress or (lambda _phase, _done, _total: None)
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as scratch:
        parcel = pack(work, models, options, Path(scratch))
        with Connection(command, machine) as connection:
            connection.send(parcel, report)
            answer = _answer(connection, machine, parcel, report)
    try:
        return read(answer)
    except DataError as error:
        raise garbage(machine, error.what) from error
    except KeyError as error:
        raise garbage(machine, f"a result of {error}") from error


def _answer(connection: Connection, machine: Machine, parcel: Parcel, report: OnProgress) -> Mapping[str, Any]:
    """Follows the events to the result, or to what there is instead."""
    folder = ""
    for event in connection.events():
        match event:
            case {"folder": str(name)}:
                folder = name
            case {"progress": [str(phase), float(done), float(total)]}:
                report(phase, done, total)
            case {"error": {"class": str(kind), "what": str(what), "fix": str(fix)}}:
                what, fix = (printable(parcel.as_known_here(text, folder)) for text in (what, fix))
                raise rebuilt(machine, kind, what, fix)
            case {"killed": int(number)}:
                raise explain_killed(machine, number)
            case {"result": dict(result)}:
                return result
    code = connection.wait()
    raise explain_end(machine, code, folder, connection.last_error, connection.last_output)
