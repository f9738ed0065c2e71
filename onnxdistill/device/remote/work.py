"""What another machine can be asked to do: functions of files by name and of options that can be sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from onnxdistill.device.bench import bench
from onnxdistill.device.costs.deviceprofile import DeviceProfile, profile_device
from onnxdistill.device.costs.layers import Layer
from onnxdistill.device.costs.models import profile_models
from onnxdistill.device.host import HostFacts, read_host
from onnxdistill.device.measuring.compare import Until, compare
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.places import Here
from onnxdistill.device.profiling.trace import Trace, trace
from onnxdistill.device.session import Array, SessionSettings

OnProgress = Callable[[str, float, float], None]


class Result(Protocol):
    """What work comes to."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        ...


def describe_host(
    _models: Mapping[str, Path], *, threads: int, provider: str, on_progress: OnProgress | None = None
) -> HostFacts:
    """The facts of this machine, if these settings are usable here; see `Place.check`."""
    del on_progress  # it is done at once
    Here().check(SessionSettings(threads=threads, provider=provider))
    return read_host()


def compare_files(
    models: Mapping[str, Path],
    *,
    threads: int,
    provider: str,
    batch: int,
    seed: int,
    until: Until,
    inputs: Mapping[str, Array] | None = None,
    on_progress: OnProgress | None = None,
) -> Estimate:
    """How many times faster the file `after` runs than `before`; see `compare`."""
    if on_progress is not None:
        on_progress("compare", 0, 1)
    settings = SessionSettings(threads=threads, provider=provider)
    before, after = models["before"], models["after"]
    return compare(before, after, settings, batch=batch, seed=seed, inputs=inputs, until=until)


def trace_file(
    models: Mapping[str, Path],
    *,
    threads: int,
    provider: str,
    inputs: Mapping[str, Array],
    on_progress: OnProgress | None = None,
) -> Trace:
    """The profile of the file `model`; see `trace`."""
    if on_progress is not None:
        on_progress("trace", 0, 1)
    return trace(models["model"], inputs, SessionSettings(threads=threads, provider=provider))


def profile_layers(
    _models: Mapping[str, Path],
    *,
    layers: Sequence[Mapping[str, Any]],
    threads: int,
    provider: str,
    step: int,
    known: Mapping[str, Any] | None,
    on_progress: OnProgress | None = None,
) -> DeviceProfile:
    """Times of layers, with those that are known already; see `profile_device`."""
    if on_progress is not None:
        on_progress("layers", 0, 1)
    return profile_device(
        [Layer.from_json(layer) for layer in layers],
        SessionSettings(threads=threads, provider=provider),
        step,
        cached=False,
        known=None if known is None else DeviceProfile.from_json(known),
    )


WORK: dict[str, Callable[..., Result]] = {
    "bench": bench,
    "compare": compare_files,
    "host": describe_host,
    "layers": profile_layers,
    "profile": profile_models,
    "trace": trace_file,
}
"""By the name that is sent."""
