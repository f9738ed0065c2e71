"""`bench` on another machine, over the system's `ssh`: nothing of onnxdistill has to be installed there.

The other machine needs Python, numpy and ONNX Runtime. `parcel` is sent to its `receiver`, which has `runner` do the
work in a temporary folder. What comes back is read as JSON and is never run.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from onnxdistill import errors
from onnxdistill.device.bench import OnProgress
from onnxdistill.device.remote import receiver
from onnxdistill.device.remote.parcel import Parcel, pack
from onnxdistill.device.result import BenchResult
from onnxdistill.errors import DataError, OnnxDistillError, UsageError, explained

# The user's own choice of an ssh with its arguments, as GIT_SSH_COMMAND is one for git.
_SSH_VARIABLE = "ONNXDISTILL_SSH"

_OPTIONS = {
    "BatchMode": "yes",  # never asks
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "LogLevel": "ERROR",  # no banner
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
}

_PYTHON = (3, 11)
_TOO_OLD = "onnxdistill: Python "

# Python's own words only, and none that a shell would read otherwise: it is not known which shell runs there.
# Without the empty entry of its path, a file in the home is not taken for a module.
_START = (
    f"import sys;sys.version_info<{_PYTHON!r}and sys.exit('{_TOO_OLD}'+sys.version.split()[0]);"
    "sys.path=[p for p in sys.path if p];"
    "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
)

_SSH_FAILED = 255
_NOT_RUNNABLE, _NOT_FOUND = 126, 127

_MOST_LINES = 20
_MOST_CHARACTERS = 500
_END_S = 2.0

_TARGET = re.compile(r"(?P<user>[^:]+@)?(?:\[(?P<address>[^@\[\]]+)\]|(?P<host>[^:@\[\]]+))(?::(?P<python>[^:]+))?")
# What OpenSSH does not take in a name either, since its configuration may hand names to a shell.
_UNSAFE = frozenset("'`\"$\\;&<>|(){}/ ")

_ERRORS = {
    name: known
    for name, known in vars(errors).items()
    if isinstance(known, type) and issubclass(known, OnnxDistillError)
}


@dataclass(frozen=True)
class Machine:
    """Where to run.

    Attributes:
        destination: What `ssh` gets: a host or an alias of its configuration, maybe with a user.
        python: Name or path of the interpreter there.
    """

    destination: str
    python: str = "python3"

    def command(self) -> str:
        """What the login shell there gets."""
        # Only an unquoted tilde is the home.
        home, path = ("~/", self.python[2:]) if self.python.startswith("~/") else ("", self.python)
        return f'{home}{shlex.quote(path)} -c "{_START}"'


def parse_target(text: str) -> Machine:
    """Reads `host`, `user@host`, `host:python` or `user@[2001:db8::1]:~/venv/bin/python`.

    Raises:
        UsageError: If it does not read so, or could be taken for an option of `ssh`.
    """
    match = _TARGET.fullmatch(text)
    if match is None or "://" in text or not text.isprintable():
        raise _unreadable(text)
    host = match["address"] or match["host"]
    destination = (match["user"] or "") + host
    if destination.startswith("-") or host.startswith("-") or not _UNSAFE.isdisjoint(destination):
        raise _unreadable(text)
    python = match["python"] or Machine.python
    if python.isdigit():
        raise UsageError(
            f"The machine {text!r} has the number {python} where the path of its Python goes.",
            "A port goes into ~/.ssh/config.",
        )
    return Machine(destination, python)


def _unreadable(text: str) -> UsageError:
    return UsageError(
        f"The machine {text!r} does not read as user@host or user@host:PYTHON.",
        "An IPv6 address goes in brackets; a port goes into ~/.ssh/config.",
    )


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
    command = _default_ssh() if ssh is None else ssh
    report = on_progress or (lambda _phase, _done, _total: None)
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as scratch:
        parcel = pack(models, options, Path(scratch))
        with _Connection(command, machine) as connection:
            connection.send(parcel, report)
            result = _answer(connection, machine, parcel, report)
    try:
        paths = {case.name: str(models[case.model]) for case in result.cases}
    except KeyError as error:
        raise _garbage(machine, f"a result of {error}") from error
    return replace(result, cases=tuple(replace(case, path=paths[case.name]) for case in result.cases))


def _default_ssh() -> list[str]:
    try:
        return shlex.split(os.environ.get(_SSH_VARIABLE, "")) or ["ssh"]
    except ValueError as error:
        raise UsageError(
            f"The environment variable {_SSH_VARIABLE} does not read: {error}.", "Close its quotes."
        ) from error


class _Connection:
    """A running `ssh`, which ends with the context."""

    def __init__(self, command: Sequence[str], machine: Machine) -> None:
        options = [part for name, value in _OPTIONS.items() for part in ("-o", f"{name}={value}")]
        try:
            self._process = subprocess.Popen(
                [*command, "-T", *options, "--", machine.destination, machine.command()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise UsageError(
                f"The program {command[0]} cannot be started: {error.strerror}.",
                "Install the client of OpenSSH; on Debian: apt install openssh-client.",
            ) from error
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._printed: deque[bytes] = deque(maxlen=_MOST_LINES)
        self._errors: deque[bytes] = deque(maxlen=_MOST_LINES)
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> _Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, OnnxDistillError):
            # The other side has said its last word, and removes its folder.
            self._has_ended()
        # Else, the end of the connection is the end of the benchmark there, and of its folder.
        self._process.terminate()
        if not self._has_ended():
            self._process.kill()
            self._process.wait()
        self._join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                _open(stream).close()

    def send(self, parcel: Parcel, report: OnProgress) -> None:
        """Sends all, or as much as is wanted; `events` or `wait` say why it was not."""
        stream = _open(self._process.stdin)
        program = Path(receiver.__file__).read_bytes()
        try:
            stream.write(b"%d\n" % len(program) + program)
            parcel.send(stream, lambda sent, total: report("send", sent, total))
        except BrokenPipeError:
            return
        except OSError as error:
            raise explained(error, "A model") from error

    def events(self) -> Iterator[dict[str, Any]]:
        """What the other side tells, until it ends."""
        while (event := self._events.get()) is not None:
            yield event

    def wait(self) -> int:
        """The exit code of `ssh`."""
        code = self._process.wait()
        self._join()
        return code

    @property
    def last_error(self) -> str:
        """The last line of standard error, of `ssh` or of the other side; empty without one."""
        return printable(self._errors[-1].decode(errors="replace")) if self._errors else ""

    @property
    def last_output(self) -> str:
        """The last line of standard output that was no event; empty without one."""
        return printable(self._printed[-1].decode(errors="replace")) if self._printed else ""

    def _has_ended(self) -> bool:
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _read_output(self) -> None:
        for line in _open(self._process.stdout):
            if (event := _event(line)) is not None:
                self._events.put(event)
            elif line.strip():
                self._printed.append(line)
        self._events.put(None)

    def _read_errors(self) -> None:
        self._errors.extend(line for line in _open(self._process.stderr) if line.strip())

    def _join(self) -> None:
        # Not for ever: a shared connection that `ssh` left in the background may hold on to these.
        for reader in self._readers:
            reader.join(_END_S)


def _event(line: bytes) -> dict[str, Any] | None:
    """What a line tells; None if it is not from `receiver` or `runner`."""
    try:
        event = json.loads(line.removeprefix(receiver.MARK)) if line.startswith(receiver.MARK) else None
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _answer(connection: _Connection, machine: Machine, parcel: Parcel, report: OnProgress) -> BenchResult:
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
                    raise _garbage(machine, error.what) from error
    code = connection.wait()
    raise explain_end(machine, code, folder, connection.last_error, connection.last_output)


def rebuilt(machine: Machine, kind: str, what: str, fix: str) -> OnnxDistillError:
    """An error of the other machine, of the same class as there.

    Args:
        machine: The other one.
        kind: Name of a class of `onnxdistill.errors`.
        what: See `OnnxDistillError`.
        fix: Likewise.
    """
    return _ERRORS.get(kind, UsageError)(f"On {machine.destination}: {what}", fix)


def explain_killed(machine: Machine, number: int) -> UsageError:
    """The paragraph for a benchmark that was ended by a signal there."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if name in ("SIGKILL", "SIGTERM"):
        return UsageError(
            f"The benchmark was killed on {machine.destination} ({name}); most likely its memory did not suffice.",
            "Ask for a smaller batch or fewer models, or close other programs there.",
        )
    return UsageError(
        f"ONNX Runtime crashed on {machine.destination} ({name}).", "Try another version of ONNX Runtime there."
    )


def explain_end(machine: Machine, code: int, folder: str, last_error: str, last_output: str) -> UsageError:
    """The paragraph for a connection that ended without a result.

    Args:
        machine: The other one.
        code: Exit code of `ssh`: that of the command there, or 255.
        folder: The folder there; empty if the receiver did not come so far.
        last_error: Last line of standard error.
        last_output: Last line of standard output that was no event.
    """
    where = machine.destination
    if folder:
        why = f": {last_error}" if last_error else ", and nothing says why"
        return UsageError(
            f"The benchmark on {where} ended without a result{_stop(why)}",
            f"Try again; if the machine went down or its memory did not suffice, {folder} may be left there.",
        )
    if code == _SSH_FAILED:
        why = last_error or "it does not say why"
        return UsageError(f"ssh cannot connect to {where}: {_stop(why)}", _way_in(where, why))
    if last_error.startswith(_TOO_OLD):
        version = last_error.removeprefix(_TOO_OLD)
        wanted = ".".join(map(str, _PYTHON))
        return UsageError(
            f"{machine.python} on {where} is Python {version}, and {wanted} or newer is needed.",
            f"Name another one: {where}:/path/to/python.",
        )
    if code in (_NOT_RUNNABLE, _NOT_FOUND):
        return UsageError(
            f"There is no Python {machine.python} on {where}: {_stop(last_error or 'it cannot be run')}",
            f"Name the path of one: {where}:/path/to/python.",
        )
    return _garbage(machine, last_error or last_output or f"nothing, and ended with exit code {code}")


def _garbage(machine: Machine, heard: str) -> UsageError:
    where = machine.destination
    return UsageError(
        f"What came from {where} is no answer to a benchmark: {_stop(printable(heard))}",
        f"Check that this prints 1: ssh {where} {shlex.quote(machine.python)} -c 'print(1)'",
    )


def _way_in(where: str, why: str) -> str:
    if "Permission denied" in why:
        return f"Nobody is asked for a password here: set up a key with ssh-copy-id {where}, or start ssh-agent."
    if "Host key verification failed" in why:
        return f"Log in once by hand to check the key of the host: ssh {where}."
    if "Could not resolve" in why:
        return "Check the name, or describe the machine in ~/.ssh/config."
    return f"Check that this works: ssh {where} true."


def printable(text: str) -> str:
    """A text of another machine on one line, without characters that would steer the terminal, and not too long."""
    text = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _stop(sentence: str) -> str:
    return f"{sentence.rstrip('. ')}."
