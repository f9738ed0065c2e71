"""How much memory a model takes: the peak of a process that does nothing but load and run it.

Within one process the peaks of several models cannot be told apart, and what one has freed another uses again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxdistill
from onnxdistill.device.cases import Case
from onnxdistill.device.measuring.openings import Feeds
from onnxdistill.device.runtime import load_runtime
from onnxdistill.device.session import SessionSettings, open_session

_RUNS = 3
_SECONDS_AT_MOST = 600.0


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory of a process that loads a model and runs it.

    Attributes:
        process_bytes: The peak of the whole process.
        runtime_bytes: What Python and ONNX Runtime take of it, before the model is loaded.
    """

    process_bytes: int
    runtime_bytes: int

    def to_json(self) -> dict[str, int]:
        """The attributes by name."""
        return asdict(self)


def peak_memory(case: Case, feeds: Feeds) -> PeakMemory | None:
    """Loads and runs a model in a process of its own.

    Args:
        case: The model and its settings.
        feeds: What it is run with.

    Returns:
        None where the system does not tell, or where the process could not be started or did not come to its end: it
        is not worth what was measured before.
    """
    if not Path("/proc/self/status").exists():
        return None
    try:
        return _of_a_process(case, feeds)
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired):  # no room for the inputs, or no answer
        return None


def _of_a_process(case: Case, feeds: Feeds) -> PeakMemory | None:
    home = str(Path(onnxdistill.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="onnxdistill-") as folder:
        np.savez(inputs := Path(folder) / "feeds.npz", *feeds.values())
        settings = {**case.settings.__dict__, "provider_options": dict(case.settings.provider_options)}
        request = {"path": str(case.path), "settings": settings, "names": list(feeds), "feeds": str(inputs)}
        child = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(request)],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=_SECONDS_AT_MOST,
            check=False,
        )
    # Providers print lines of their own.
    return PeakMemory(**json.loads(child.stdout.splitlines()[-1])) if child.returncode == 0 and child.stdout else None


def _measured(request: dict[str, Any]) -> PeakMemory:
    with np.load(request["feeds"]) as file:
        feeds = dict(zip(request["names"], (file[key] for key in file.files), strict=True))
    load_runtime()
    before = _peak_bytes()
    session = open_session(Path(request["path"]), SessionSettings(**request["settings"]))
    for _ in range(_RUNS):
        session.run(feeds)
    return PeakMemory(_peak_bytes(), before)


def _peak_bytes() -> int:
    """From Linux's own count: that of `resource` is inherited from the process that started this one."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process has used")


if __name__ == "__main__":
    print(json.dumps(_measured(json.loads(sys.argv[1])).to_json()))
