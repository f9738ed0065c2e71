"""`profile_models` on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.models import OnProgress
from onnxdistill.device.remote.errand import run_remotely


def remote_profile(
    target: str,
    models: Mapping[str, Path],
    options: Mapping[str, Any],
    on_progress: OnProgress | None = None,
    *,
    ssh: Sequence[str] | None = None,
) -> DeviceProfile:
    """Runs `profile_models` on another machine; see there for the options, and `run_remotely` for the rest.

    Nothing stays there, so that nothing is read from a cache either.
    """
    asked = {**options, "cached": False}
    return run_remotely(target, "profile", models, asked, DeviceProfile.from_json, on_progress, ssh=ssh)
