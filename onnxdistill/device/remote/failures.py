"""What is said of a benchmark on another machine that failed there, or came to no end."""

from __future__ import annotations

import shlex
import signal

from onnxdistill import errors
from onnxdistill.device.remote.machine import PYTHON, TOO_OLD, Machine
from onnxdistill.errors import OnnxDistillError, UsageError

_ERRORS = {
    name: known
    for name, known in vars(errors).items()
    if isinstance(known, type) and issubclass(known, OnnxDistillError)
}

_SSH_FAILED = 255
_NOT_RUNNABLE, _NOT_FOUND = 126, 127

_MOST_CHARACTERS = 500


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
    if last_error.startswith(TOO_OLD):
        version = last_error.removeprefix(TOO_OLD)
        wanted = ".".join(map(str, PYTHON))
        return UsageError(
            f"{machine.python} on {where} is Python {version}, and {wanted} or newer is needed.",
            f"Name another one: {where}:/path/to/python.",
        )
    if code in (_NOT_RUNNABLE, _NOT_FOUND):
        return UsageError(
            f"There is no Python {machine.python} on {where}: {_stop(last_error or 'it cannot be run')}",
            f"Name the path of one: {where}:/path/to/python.",
        )
    return garbage(machine, last_error or last_output or f"nothing, and ended with exit code {code}")


def garbage(machine: Machine, heard: str) -> UsageError:
    """The paragraph for an answer that is none.

    Args:
        machine: The other one.
        heard: What there was instead.
    """
    where = machine.destination
    return UsageError(
        f"What came from {where} is no answer to a benchmark: {_stop(printable(heard))}",
        f"Check that this prints 1: ssh {where} {shlex.quote(machine.python)} -c 'print(1)'",
    )


def printable(text: str) -> str:
    """A text of another machine on one line, without characters that would steer the terminal, and not too long."""
    text = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _way_in(where: str, why: str) -> str:
    if "Permission denied" in why:
        return f"Nobody is asked for a password here: set up a key with ssh-copy-id {where}, or start ssh-agent."
    if "Host key verification failed" in why:
        return f"Log in once by hand to check the key of the host: ssh {where}."
    if "Could not resolve" in why:
        return "Check the name, or describe the machine in ~/.ssh/config."
    return f"Check that this works: ssh {where} true."


def _stop(sentence: str) -> str:
    return f"{sentence.rstrip('. ')}."
