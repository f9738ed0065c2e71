"""`profile_models` on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxdistill.device.costs.deviceprofile import DeviceProfile, remember_profile
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

    All is measured anew; nothing stays there, and here it is kept for whoever plans for that machine.
    """
    asked = {**options, "cached": False}
    profile = run_remotely(target, "profile", models, asked, DeviceProfile.from_json, on_progress, ssh=ssh)
    remember_profile(profile, target)
    return profile
