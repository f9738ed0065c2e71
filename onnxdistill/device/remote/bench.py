"""`bench` on another machine, over the system's `ssh`: nothing of onnxdistill has to be installed there.

The other machine needs Python, numpy and ONNX Runtime. `parcel` is sent to its `receiver`, which has `runner` do the
work in a temporary folder. What comes back is read as JSON and is never run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxdistill.device.bench import OnProgress
from onnxdistill.device.remote.connection import Connection, default_ssh
from onnxdistill.device.remote.failures import explain_end, explain_killed, garbage, printable, rebuilt
from onnxdistill.device.remote.machine import Machine, parse_target
from onnxdistill.device.remote.parcel import Parcel, pack
from onnxdistill.device.result import BenchResult
from onnxdistill.errors import DataError


def remote_bench(
    target: str,
    models: Mapping[str, Path],
    options: Mapping[str, Any],
    on_progress: OnProgress | None = None,
    *,
    ssh: Sequence[str] | None = None,
) -> BenchResult:
    """Runs `bench` on another machine; see there for the options and the result.

    Everything that is sent lies in a temporary folder there, which is removed at the end, however it comes.

    Args:
        target: See `parse_target`.
        models: Files of this machine by name, which are sent with their external data.
        options: Keyword arguments of `bench`.
        on_progress: As of `bench`, with one more phase at the begin: `"send"`, in bytes.
        ssh: The program with further arguments; if left out, what the environment variable `ONNXDISTILL_SSH` says,
            or `ssh`.

    Returns:
        What was measured there, with the facts of that machine and the paths of this one.

    Raises:
        UsageError: If the machine cannot be reached or used, or the benchmark came to no end there.
        OnnxDistillError: Whatever `bench` raised there, of the same class.
    """
    machine = parse_target(target)
    command = default_ssh() if ssh is None else ssh
    report = on_progress or (lambda _phase, _done, _total: None)
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as scratch:
        parcel = pack(models, options, Path(scratch))
        with Connection(command, machine) as connection:
            connection.send(parcel, report)
            result = _answer(connection, machine, parcel, report)
    try:
        paths = {case.name: str(models[case.model]) for case in result.cases}
    except KeyError as error:
        raise garbage(machine, f"a result of {error}") from error
    return replace(result, cases=tuple(replace(case, path=paths[case.name]) for case in result.cases))


def _answer(connection: Connection, machine: Machine, parcel: Parcel, report: OnProgress) -> BenchResult:
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
                try:
                    return BenchResult.from_json(result)
                except DataError as error:
                    raise garbage(machine, error.what) from error
    code = connection.wait()
    raise explain_end(machine, code, folder, connection.last_error, connection.last_output)
