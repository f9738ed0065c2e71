"""Another machine that times ONNX files, behind the protocol of `places`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from onnxdistill.device.costs.deviceprofile import DeviceProfile, remember_profile, remembered_profile
from onnxdistill.device.costs.layers import Layer, LayerKind
from onnxdistill.device.host import HostFacts
from onnxdistill.device.measuring.compare import Until
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.places import Say, key_of
from onnxdistill.device.profiling.trace import Trace
from onnxdistill.device.remote.bench import remote_bench
from onnxdistill.device.remote.errand import run_remotely
from onnxdistill.device.remote.failures import printable
from onnxdistill.device.result import BenchResult
from onnxdistill.device.session import Array, SessionSettings

Result = TypeVar("Result")


class There:
    """Another machine, over the system's `ssh`; see `run_remotely`, and `Place` for the methods.

    Args:
        target: See `parse_target`.
        ssh: See `run_remotely`.
    """

    def __init__(self, target: str, *, ssh: Sequence[str] | None = None) -> None:
        self._target = target
        self._ssh = ssh
        self._host: HostFacts | None = None

    @property
    def host(self) -> HostFacts:
        """The facts of the machine."""
        if self._host is None:
            self.check(SessionSettings())
        assert self._host is not None
        return self._host

    @property
    def key(self) -> str:
        """See `Place`."""
        return f"elsewhere {self._target} {key_of(self.host)}"  # another board of that kind may be cooled otherwise

    def check(self, settings: SessionSettings) -> None:
        """See `Place`."""
        host = self._ask("host", {}, settings, {}, HostFacts.from_json)
        self._host = replace(host, cpu=printable(host.cpu), gpus=tuple(map(printable, host.gpus)))

    def bench(self, models: Mapping[str, Path], **options: Any) -> BenchResult:
        """See `bench`."""
        given = {name: value for name, value in options.items() if name != "on_progress"}
        return remote_bench(self._target, models, given, options.get("on_progress"), ssh=self._ssh)

    def compare(
        self,
        before: Path,
        after: Path,
        settings: SessionSettings,
        *,
        batch: int = 1,
        seed: int = 0,
        inputs: Mapping[str, Array] | None = None,
        until: Until = "clear",
    ) -> Estimate:
        """See `compare`."""
        options = {"batch": batch, "seed": seed, "inputs": inputs, "until": until}
        return self._ask("compare", {"before": before, "after": after}, settings, options, Estimate.from_json)

    def trace(self, model: Path, feeds: Mapping[str, Array], settings: SessionSettings) -> Trace:
        """See `trace`."""
        return self._ask("trace", {"model": model}, settings, {"inputs": feeds}, Trace.from_json)

    def profile(self, layers: Sequence[Layer], settings: SessionSettings, step: int, say: Say) -> DeviceProfile:
        """See `profile_device`; what was measured there is kept here, kind by kind."""
        by_kind: dict[LayerKind, list[Layer]] = {}
        for layer in layers:
            by_kind.setdefault(layer.kind, []).append(layer)
        known = remembered_profile(self.host, settings, self._target)
        for kind, alike in by_kind.items():
            if known is not None and all(known.covers(layer, step) for layer in alike):
                continue
            say(f"measuring {kind}")
            options = {
                "layers": [layer.to_json() for layer in alike],
                "step": step,
                "known": None if known is None else known.to_json(),
            }
            known = self._ask("layers", {}, settings, options, DeviceProfile.from_json)
            remember_profile(known, self._target)
        assert known is not None, "a network without layers is not planned"
        return known

    def _ask(
        self,
        work: str,
        models: Mapping[str, Path],
        settings: SessionSettings,
        options: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], Result],
    ) -> Result:
        asked = {**options, "threads": settings.threads, "provider": settings.provider}
        return run_remotely(self._target, work, models, asked, read, ssh=self._ssh)
