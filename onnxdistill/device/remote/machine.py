"""The other machine of a benchmark over `ssh`: how it is named here, and what its login shell gets."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from onnxdistill.errors import UsageError

PYTHON = (3, 11)
"""The oldest version of Python that will do."""

TOO_OLD = "onnxdistill: Python "
"""What an older one says there, followed by its version."""

# Python's own words only, and none that a shell would read otherwise: it is not known which shell runs there.
# Without the empty entry of its path, a file in the home is not taken for a module.
_START = (
    f"import sys;sys.version_info<{PYTHON!r}and sys.exit('{TOO_OLD}'+sys.version.split()[0]);"
    "sys.path=[p for p in sys.path if p];"
    "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
)

_TARGET = re.compile(r"(?P<user>[^:]+@)?(?:\[(?P<address>[^@\[\]]+)\]|(?P<host>[^:@\[\]]+))(?::(?P<python>[^:]+))?")
# What OpenSSH does not take in a name either, since its configuration may hand names to a shell.
_UNSAFE = frozenset("'`\"$\\;&<>|(){}/ ")


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
