"""Where ONNX files are timed: this machine, or, behind the same protocol, another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from onnxdistill.device.bench import bench
from onnxdistill.device.costs.deviceprofile import DeviceProfile, profile_device
from onnxdistill.device.costs.layers import Layer
from onnxdistill.device.host import HostFacts, read_host
from onnxdistill.device.measuring.compare import Until, compare
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.probe import probe_provider
from onnxdistill.device.profiling.trace import Trace, trace
from onnxdistill.device.result import BenchResult
from onnxdistill.device.runtime import short_name, usable_provider
from onnxdistill.device.session import Array, SessionSettings
from onnxdistill.errors import FallbackError, ProviderError

Say = Callable[[str], None]


class Place(Protocol):
    """A machine that times ONNX files; all of its methods raise what their namesakes in this package do."""

    @property
    def host(self) -> HostFacts:
        """The facts of the machine."""
        ...

    @property
    def key(self) -> str:
        """Machine and runtime: what was measured counts as long as it stays the same."""
        ...

    def check(self, settings: SessionSettings) -> None:
        """Refuses settings that are not usable there, before anything has run.

        Raises:
            UsageError: If there are too many threads, or if the provider is unknown or not usable there.
        """
        ...

    def bench(self, models: Mapping[str, Path], **options: Any) -> BenchResult:
        """See `bench`."""
        ...

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
        ...

    def trace(self, model: Path, feeds: Mapping[str, Array], settings: SessionSettings) -> Trace:
        """See `trace`."""
        ...

    def profile(self, layers: Sequence[Layer], settings: SessionSettings, step: int, say: Say) -> DeviceProfile:
        """See `profile_device`; `say` is told what is measured."""
        ...


class Here:
    """This machine."""

    @cached_property
    def host(self) -> HostFacts:
        """The facts of this machine."""
        return read_host()

    @property
    def key(self) -> str:
        """See `Place`."""
        return key_of(self.host)

    def check(self, settings: SessionSettings) -> None:
        """See `Place`."""
        try:
            full = usable_provider(settings.provider)
        except FallbackError as error:  # nothing has run yet
            raise ProviderError(error.what, error.fix) from error
        # What is compiled in may lack its driver, and it shall not be found out after the training.
        if short_name(full) != "cpu" and (wrong := probe_provider(settings.provider)):
            raise ProviderError(wrong, "See what onnxdistill doctor says there.")

    def bench(self, models: Mapping[str, Path], **options: Any) -> BenchResult:
        """See `bench`."""
        return bench(models, **options)

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
        return compare(before, after, settings, batch=batch, seed=seed, inputs=inputs, until=until)

    def trace(self, model: Path, feeds: Mapping[str, Array], settings: SessionSettings) -> Trace:
        """See `trace`."""
        return trace(model, feeds, settings)

    def profile(self, layers: Sequence[Layer], settings: SessionSettings, step: int, say: Say) -> DeviceProfile:
        """See `profile_device`."""
        return profile_device(layers, settings, step, on_kind=lambda kind, _: say(f"measuring {kind}"))


def key_of(host: HostFacts) -> str:
    """The part of a machine's facts that latencies depend on."""
    runtime = f"{host.onnxruntime} {host.onnxruntime_package}"
    processors = f"{host.cpu} {host.architecture} {host.int8_features} {host.usable_cpus} {host.cpu_limit}"
    return " ".join([processors, runtime, *host.gpus])
