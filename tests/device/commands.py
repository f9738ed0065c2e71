"""`onnxdistill bench` as a real process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs it with what both of its outputs say, but for what the options of the process say otherwise."""
    command = [sys.executable, "-m", "onnxdistill", "bench", *map(str, arguments)]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]  # options of any kind
        command, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT, **{"stdout": subprocess.PIPE, **options}
    )
