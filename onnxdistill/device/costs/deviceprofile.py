"""What layers cost on a machine: measured once, kept, and read by whoever plans a network for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxdistill.device.cachefolder import cache_folder, found, keep
from onnxdistill.device.costs.coldness import Coldness, measure_coldness
from onnxdistill.device.costs.layers import DEPTHWISE, Layer, LayerKind
from onnxdistill.device.costs.measuring import LayerClock
from onnxdistill.device.costs.probes import Widths
from onnxdistill.device.costs.surface import Surface, axis, grouped_axis, pairs
from onnxdistill.device.host import HostFacts, read_host
from onnxdistill.device.jsonfile import read_json
from onnxdistill.device.schema import reading
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import DataError

SCHEMA_VERSION = 5

ROUNDS = 2
"""How often a kind of layer is measured."""

_MOST_FILES = 16

OnKind = Callable[[LayerKind, int], None]
"""Gets every kind of layer before it is measured, and at how many widths that is done."""


@dataclass(frozen=True)
class DeviceProfile:
    """Times of layers on a machine.

    Attributes:
        host: The machine.
        threads: Threads inside one operator.
        provider: Execution provider, as it was asked for.
        activations: Type of what goes into layers of 8-bit integers.
        coldness: How far weights leave the caches from one run to the next.
        surfaces: Times of every kind of layer, with its weights in the caches.
    """

    host: HostFacts
    threads: int
    provider: str
    activations: str
    coldness: Coldness
    surfaces: Mapping[LayerKind, Surface]

    @property
    def settings(self) -> SessionSettings:
        """How the layers were run."""
        return SessionSettings(threads=self.threads, provider=self.provider)

    def time_ms(self, layer: Layer) -> float:
        """The time of a layer.

        Raises:
            KeyError: If layers of its kind have not been measured.
        """
        return self.surfaces[layer.kind].time_ms(layer.inputs, layer.outputs)

    def covers(self, layer: Layer, step: int) -> bool:
        """Whether a layer, and narrower ones whose widths are multiples of `step`, are known.

        What has been cut from layers that were measured lies between their points.
        """
        known = self.surfaces.get(layer.kind)
        return known is not None and known.covers(layer.inputs, layer.outputs, _points(layer, step))

    def extended(self, layers: Iterable[Layer], step: int, on_kind: OnKind | None = None) -> DeviceProfile:
        """The profile with what it lacks for these layers, and for narrower ones of their kinds.

        Args:
            layers: Of networks as they are now.
            step: Widths will be whole multiples of it, or what they are now.
            on_kind: See `OnKind`.

        Raises:
            ModelFileError: If ONNX Runtime does not take such a layer.
        """
        wanted: dict[LayerKind, dict[Widths, None]] = {}
        for layer in layers:
            if not self.covers(layer, step):
                wanted.setdefault(layer.kind, {}).update(dict.fromkeys(_points(layer, step)))
        surfaces = dict(self.surfaces)
        clock: LayerClock | None = None
        for kind, widths in wanted.items():
            measured_before = surfaces[kind].points_ms if kind in surfaces else {}
            lacking = [pair for pair in widths if pair not in measured_before]
            if not lacking:
                continue
            clock = clock or LayerClock(self.settings, self.activations)
            if on_kind is not None:
                on_kind(kind, len(lacking))
            measured = clock.times_ms(kind, lacking)
            surfaces[kind] = Surface({**measured_before, **measured}, kind.groups)
        return replace(self, surfaces=surfaces)

    def timed_again(self, kind: LayerKind, widths: Sequence[Widths], on_kind: OnKind | None = None) -> DeviceProfile:
        """The profile with the lower times of these widths: those of now, or those that it has.

        Whatever else ran on the machine while a kind was measured has made all of its layers slower.

        Raises:
            ModelFileError: If ONNX Runtime does not take such a layer.
        """
        if on_kind is not None:
            on_kind(kind, len(widths))
        before, now = self.surfaces[kind].points_ms, LayerClock(self.settings, self.activations).times_ms(kind, widths)
        lower = {pair: min(time_ms, before[pair]) for pair, time_ms in now.items()}
        return replace(self, surfaces={**self.surfaces, kind: Surface({**before, **lower}, kind.groups)})

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "host": self.host.to_json(),
            "threads": self.threads,
            "provider": self.provider,
            "activations": self.activations,
            "coldness": self.coldness.to_json(),
            "layers": [
                {
                    **kind.to_json(),
                    "points": [[*pair, time_ms] for pair, time_ms in sorted(surface.points_ms.items())],
                }
                for kind, surface in self.surfaces.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceProfile:
        """The inverse of `to_json`.

        Raises:
            DataError: If the data is of another schema version or is not a device profile.
        """
        with reading("device profile", data, SCHEMA_VERSION):
            surfaces = {}
            for item in data["layers"]:
                kind = LayerKind.from_json({key: item[key] for key in item.keys() - {"points"}})
                points = {(int(one), int(other)): float(time_ms) for one, other, time_ms in item["points"]}
                surfaces[kind] = Surface(points, kind.groups)
            return cls(
                HostFacts.from_json(data["host"]),
                int(data["threads"]),
                str(data["provider"]),
                str(data["activations"]),
                Coldness.from_json(data["coldness"]),
                surfaces,
            )


def profile_device(
    layers: Sequence[Layer],
    settings: SessionSettings,
    step: int = 8,
    activations: str | None = None,
    on_kind: OnKind | None = None,
    *,
    cached: bool = True,
    fresh: bool = False,
    known: DeviceProfile | None = None,
) -> DeviceProfile:
    """Measures layers on this machine, or takes what was measured here before.

    Each is measured twice, the second time after all others, and the lower time counts. What was measured is kept by
    processor, GPUs, version of ONNX Runtime and settings.

    Args:
        layers: Of networks as they are now; narrower ones are measured, too.
        settings: How layers are run.
        step: Widths will be whole multiples of it, or what they are now.
        activations: Type of what goes into layers of 8-bit integers; by default what this processor's kernels take.
        on_kind: See `OnKind`.
        cached: Take what was measured here before, and keep what is measured now.
        fresh: Measure all of it again.
        known: What was measured here before, where that is not kept here; that of another machine is left out.

    Raises:
        ModelFileError: If ONNX Runtime does not take such a layer.
    """
    empty = _empty(read_host(), settings, activations)
    if known is None and cached and not fresh:
        known = _kept(_file(empty))
    if known is None or _file(known) != _file(empty):
        profile = replace(empty, coldness=measure_coldness(LayerClock(settings, empty.activations)))
    else:
        profile = replace(empty, coldness=known.coldness, surfaces=known.surfaces)
    by_kind: dict[LayerKind, list[Layer]] = {}
    for layer in layers:
        by_kind.setdefault(layer.kind, []).append(layer)
    measured: dict[LayerKind, list[Widths]] = {}
    for kind, alike in by_kind.items():
        before = profile.surfaces[kind].points_ms if kind in profile.surfaces else {}
        profile = profile.extended(alike, step, on_kind)
        if fresh_ones := [pair for pair in profile.surfaces[kind].points_ms if pair not in before]:
            measured[kind] = fresh_ones
            if cached:  # at once: whoever ends this goes on from here
                remember_profile(profile)
    for kind, widths in (ROUNDS - 1) * list(measured.items()):
        profile = profile.timed_again(kind, widths, on_kind)
    if cached and measured:
        remember_profile(profile)
    return profile


def remembered_profile(host: HostFacts, settings: SessionSettings, place: str) -> DeviceProfile | None:
    """What is kept here of layers that were measured on another machine; None if there is nothing.

    Args:
        host: Its facts, which others may have, too.
        settings: How layers are run.
        place: Which machine it is.
    """
    return _kept(_file(_empty(host, settings), place))


def remember_profile(profile: DeviceProfile, place: str = "") -> None:
    """Keeps a profile, with what another process has kept meanwhile of other kinds of layers.

    Args:
        profile: Of this machine, or of another one.
        place: Which other machine it is.
    """
    file = _file(profile, place)
    kept = _kept(file)
    whole = profile if kept is None else replace(profile, surfaces={**kept.surfaces, **profile.surfaces})
    keep(file, json.dumps(whole.to_json()).encode(), _MOST_FILES)


def read_device_profile(path: Path) -> DeviceProfile:
    """Reads what `onnxdistill profile` wrote.

    Raises:
        DataError: If the file is missing, no JSON, or no profile of this schema version.
    """
    return DeviceProfile.from_json(read_json(path, "device profile", "onnxdistill profile --out"))


def _points(layer: Layer, step: int) -> list[Widths]:
    groups = layer.kind.groups
    if groups == DEPTHWISE:
        return [(width, width) for width in axis(layer.outputs, step)]
    if groups > 1:
        return pairs(grouped_axis(layer.inputs, groups), grouped_axis(layer.outputs, groups))
    return pairs(axis(layer.inputs, step), axis(layer.outputs, step))


def _empty(host: HostFacts, settings: SessionSettings, activations: str | None = None) -> DeviceProfile:
    chosen = activations or ("uint8" if host.is_x86 else "int8")
    return DeviceProfile(host, settings.threads, settings.provider, chosen, Coldness((), ()), {})


def _file(profile: DeviceProfile, place: str = "") -> Path:
    """Where the profile of that machine and those settings is kept."""
    host = profile.host
    machine = f"{host.cpu} {host.architecture} {host.int8_features} {host.usable_cpus} {host.cpu_limit} {host.os}"
    runtime = f"{host.onnxruntime} {host.onnxruntime_package}"
    settings = f"{profile.threads} {profile.provider} {profile.activations}"
    text = " ".join([str(SCHEMA_VERSION), machine, *host.gpus, runtime, settings, place])
    return cache_folder("devices") / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _kept(file: Path) -> DeviceProfile | None:
    content = found(file)
    if content is None:
        return None
    try:
        return DeviceProfile.from_json(json.loads(content))
    except (ValueError, AttributeError, DataError):  # damaged, or of another release: measured again
        return None
