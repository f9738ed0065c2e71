"""What another machine runs first for `bench --remote`: receives files, lets `runner` do the work, and cleans up.

The text of this module is sent to a bare Python there, so it imports the standard library only. It goes on while the
benchmark runs, since what may be killed, for its memory above all, could not tell and remove its files.

It reads a line of JSON, `{"files": [[NAME, BYTES], ...]}`, then the content of these files, one after the other, and
then nothing: when the connection ends, so does the benchmark. It writes lines of `MARK` and a JSON object with one key,
as does `runner`: `folder`, `progress`, `result`, `error` or `killed`. What else is in the output is not from here.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import BinaryIO

MARK = b"onnxdistill> "

_NEEDED = ("numpy", "onnxruntime")
_CHUNK_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Refusal(Exception):  # noqa: N818  # it is an answer, and names the error that is raised at the other end
    """What is told as an error of a class of `onnxdistill.errors`, which is not here yet."""

    def __init__(self, kind: str, what: str, fix: str) -> None:
        self.told = {"class": kind, "what": what, "fix": fix}
        super().__init__(what)


def tell(stream: BinaryIO, **event: object) -> None:
    """Writes an event on a line of its own, whatever was written before; in vain if nobody listens any more."""
    with contextlib.suppress(BrokenPipeError):
        stream.write(b"\n" + MARK + json.dumps(event).encode() + b"\n")
        stream.flush()


def main() -> int:
    """Does everything, and returns the exit code: 0 if all was told that there is to tell."""
    source, events = sys.stdin.buffer, sys.stdout.buffer
    _on_signals(lambda number, _frame: sys.exit(128 + number))
    folder = None
    try:
        _check_packages()
        files = json.loads(source.readline())["files"]
        folder = _make_folder(sum(size for _, size in files))
        tell(events, folder=str(folder))
        _receive(source, folder, files)
        _run(folder, events)
    except Refusal as refusal:
        tell(events, error=refusal.told)
    except OSError as error:
        tell(events, error=_explained(error, folder).told)
    except (EOFError, ValueError):
        return 1  # The connection ended on the way.
    finally:
        _on_signals(signal.SIG_IGN)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def _on_signals(action: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, action)


def _check_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    python, packages = shlex.quote(sys.executable), " ".join(missing)
    fix = f"Run there: {python} -m pip install {packages}."
    managed = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()
    if managed and sys.prefix == sys.base_prefix:  # Debian's own Python, which pip may not change (PEP 668)
        fix = (
            f"Run there: {python} -m venv bench && bench/bin/pip install {' '.join(_NEEDED)}; "
            f"then add the path of that Python to the name of the machine, :bench/bin/python."
        )
    raise Refusal("MissingPackageError", f"The Python at {sys.executable} does not have {' and '.join(missing)}.", fix)


def _make_folder(size_bytes: int) -> Path:
    """A new folder where there is room: the usual place, which may be a part of the memory, or the home."""
    places = [Path(tempfile.gettempdir()), Path.home()]
    for place in places:
        if shutil.disk_usage(place).free > size_bytes:
            return Path(tempfile.mkdtemp(prefix="onnxdistill-", dir=place))
    raise Refusal(
        "OutputError",
        f"There is no room for {size_bytes / 1e6:,.1f} MB in {' or '.join(map(str, places))}.",
        "Free space there.",
    )


def _receive(source: BinaryIO, folder: Path, files: list[tuple[str, int]]) -> None:
    for name, size_bytes in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            left = size_bytes
            while left:
                content = source.read(min(left, _CHUNK_BYTES))
                if not content:
                    raise EOFError(name)
                file.write(content)
                left -= len(content)


def _run(folder: Path, events: BinaryIO) -> None:
    """Runs the benchmark in a process group of its own, which ends with the connection."""
    package, temporary = folder / "package", folder / "tmp"
    temporary.mkdir()
    paths = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(
        [sys.executable, "-m", "onnxdistill.device.remote.runner", str(folder)],
        cwd=package,
        env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    threading.Thread(target=_end_with_connection, args=[child.pid], daemon=True).start()
    try:
        code = child.wait()
    finally:
        _kill(child.pid)
        child.wait()
    if code < 0:
        tell(events, killed=-code)


def _end_with_connection(group: int) -> None:
    # Not through `sys.stdin`: a thread that waits there cannot be left behind at the end of the program.
    while os.read(0, _CHUNK_BYTES):
        pass
    _kill(group)


def _kill(group: int) -> None:
    """Ends the benchmark and what it has started itself; nothing, if they have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, if they have just ended
        os.killpg(group, signal.SIGKILL)


def _explained(error: OSError, folder: Path | None) -> Refusal:
    place = folder or error.filename or "the temporary folder"
    fix = "Free space there." if error.errno in _NO_ROOM else "Check its permissions and limits."
    return Refusal("OutputError", f"The benchmark cannot be set up in {place}: {error.strerror or error}.", fix)


if __name__ == "__main__":
    sys.exit(main())
