"""The `ssh` to another machine: what is sent through it, and the events that come back."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from onnxdistill.device.bench import OnProgress
from onnxdistill.device.remote import receiver
from onnxdistill.device.remote.failures import printable
from onnxdistill.device.remote.machine import Machine
from onnxdistill.device.remote.parcel import Parcel
from onnxdistill.errors import OnnxDistillError, UsageError, explained

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

_MOST_LINES = 20
_END_S = 2.0


def default_ssh() -> list[str]:
    """The program with its first arguments: what the environment variable `ONNXDISTILL_SSH` says, or `ssh`.

    Raises:
        UsageError: If a quote of the variable is not closed.
    """
    try:
        return shlex.split(os.environ.get(_SSH_VARIABLE, "")) or ["ssh"]
    except ValueError as error:
        raise UsageError(
            f"The environment variable {_SSH_VARIABLE} does not read: {error}.", "Close its quotes."
        ) from error


class Connection:
    """A running `ssh`, which ends with the context.

    Args:
        command: The program with further arguments.
        machine: Where it leads to.

    Raises:
        UsageError: If there is no such program.
    """

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

    def __enter__(self) -> Connection:
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
