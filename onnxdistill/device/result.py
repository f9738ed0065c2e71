"""The result of a benchmark: every raw time, what it comes to, and the facts that it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import numpy as np

from onnxdistill.device.host import HostFacts
from onnxdistill.device.loading.traffic import CaseLoad
from onnxdistill.device.measuring.agreement import Agreement
from onnxdistill.device.measuring.memory import PeakMemory
from onnxdistill.device.measuring.statistics import Estimate, Percentiles, Series
from onnxdistill.device.profiling.profiles import CaseProfile
from onnxdistill.device.schema import reading
from onnxdistill.device.verdicts import Verdict

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class BenchSettings:
    """How all cases were timed.

    Attributes:
        runs: Timed calls of each case that were asked for; None if a time was asked for.
        seconds: Seconds of timing that were asked for, all cases together; None if runs were asked for.
        precision: Half-width of the intervals, as a share, that was asked for; None if none was.
        warmup: Calls before the timing that were asked for; None for until it is steady.
        seed: Of the inputs, the order of the cases and the intervals.
        baseline: Name of the model that the others are compared with.
        calls_per_round: Timed calls of each case in a round, for each opening.
    """

    runs: int | None
    seconds: float | None
    precision: float | None
    warmup: int | None
    seed: int
    baseline: str
    calls_per_round: tuple[int, ...]


@dataclass(frozen=True)
class CaseTiming:
    """How long one model takes in one setting.

    Attributes:
        name: As the result calls it: the model's name and what of its settings others do not share.
        model: Name of the model.
        path: As it was given.
        size_bytes: The file with its external data.
        sha256: Of the file.
        threads: Threads inside one operator.
        batch: Items per call.
        provider: Full name of the execution provider.
        optimization_level: How far ONNX Runtime rewrote the graph.
        provider_options: Of the execution provider.
        io_binding: Whether inputs and outputs stayed on its device.
        inputs: Shape of each input by name.
        load_ms: From the file to a session that is ready; the median over the openings.
        first_run_ms: The first run, which allocates memory and more; likewise.
        warmup_calls: Runs before the first timing.
        latency_ms: One run with the whole batch.
        throughput_per_s: Items a second at the mean latency, one run after the other.
        compared_with: Name of the case that `speedup` is against; its own if it is a baseline.
        speedup: How many times faster an item is than there; 1 for a baseline itself.
        nodes_by_provider: How many nodes run on which provider, by full name; empty if it is not known.
        memory: Of a process that does nothing but run it; None where that is not known.
        shaky: Reasons not to trust these numbers; each is a sentence.
        times_ms: Every timed run of each opening, in the order of time.
    """

    name: str
    model: str
    path: str
    size_bytes: int
    sha256: str
    threads: int
    batch: int
    provider: str
    optimization_level: str
    provider_options: dict[str, str]
    io_binding: bool
    inputs: dict[str, tuple[int, ...]]
    load_ms: float
    first_run_ms: float
    warmup_calls: int
    latency_ms: Percentiles
    throughput_per_s: float
    compared_with: str
    speedup: Estimate
    nodes_by_provider: dict[str, int]
    memory: PeakMemory | None
    shaky: tuple[str, ...]
    times_ms: tuple[tuple[float, ...], ...]

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it."""
        return self.compared_with == self.name

    def every_ms(self) -> Series:
        """The times of all openings, of shape `(calls,)`."""
        return np.concatenate([np.asarray(times) for times in self.times_ms])

    def medians_ms(self) -> list[float]:
        """The median of each opening."""
        return [float(np.median(times)) for times in self.times_ms]


@dataclass(frozen=True)
class BenchResult:
    """Models that were timed side by side on one machine.

    Attributes:
        measured_at: UTC, ISO 8601.
        settings: How.
        host: Where.
        cases: Every model in every setting, in the order they were given.
        loads: The cases under load, if that was asked for.
        profiles: Where the time of the cases goes, if that was asked for.
        agreements: How far the outputs of the models agree with those of the baseline, if that was asked for.
        verdicts: Whether limits were met, if there were any.
        shaky: Reasons of the machine not to trust any of the numbers; each is a sentence.
    """

    measured_at: str
    settings: BenchSettings
    host: HostFacts
    cases: tuple[CaseTiming, ...]
    loads: tuple[CaseLoad, ...]
    profiles: tuple[CaseProfile, ...]
    agreements: tuple[Agreement, ...]
    verdicts: tuple[Verdict, ...]
    shaky: tuple[str, ...]

    def __getitem__(self, name: str) -> CaseTiming:
        """The case of that name."""
        return next(case for case in self.cases if case.name == name)

    def doubts(self) -> list[str]:
        """Every reason not to trust the numbers; one that several cases share is said once."""
        sharing: dict[str, list[str]] = {}
        for case in self.cases:
            for reason in case.shaky:
                sharing.setdefault(reason, []).append(case.name)
        return [*self.shaky, *(f"{'; '.join(names)}: {reason}" for reason, names in sharing.items())]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`, with every raw time to the nanosecond."""
        return {
            "schema_version": SCHEMA_VERSION,
            "measured_at": self.measured_at,
            "settings": {**self.settings.__dict__, "calls_per_round": list(self.settings.calls_per_round)},
            "host": self.host.to_json(),
            "shaky": list(self.shaky),
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "loads": [load.to_json() for load in self.loads],
            "profiles": [profile.to_json() for profile in self.profiles],
            "agreements": [agreement.to_json() for agreement in self.agreements],
            "cases": [_case_to_json(case) for case in self.cases],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchResult:
        """The inverse of `to_json`.

        Raises:
            DataError: If the data is of another schema version or is not a benchmark result.
        """
        with reading("benchmark result", data, SCHEMA_VERSION):
            settings = {**data["settings"], "calls_per_round": tuple(data["settings"]["calls_per_round"])}
            return cls(
                measured_at=data["measured_at"],
                settings=BenchSettings(**settings),
                host=HostFacts.from_json(data["host"]),
                cases=tuple(_case_from_json(case) for case in data["cases"]),
                loads=tuple(CaseLoad.from_json(load) for load in data["loads"]),
                profiles=tuple(CaseProfile.from_json(profile) for profile in data["profiles"]),
                agreements=tuple(Agreement.from_json(agreement) for agreement in data["agreements"]),
                verdicts=tuple(Verdict.from_json(verdict) for verdict in data["verdicts"]),
                shaky=tuple(data["shaky"]),
            )


def _case_to_json(case: CaseTiming) -> dict[str, Any]:
    return {
        **{field.name: getattr(case, field.name) for field in fields(case)},
        "inputs": {name: list(shape) for name, shape in case.inputs.items()},
        "latency_ms": case.latency_ms.to_json(),
        "speedup": case.speedup.to_json(),
        "memory": None if case.memory is None else case.memory.to_json(),
        "shaky": list(case.shaky),
        "times_ms": [list(times) for times in case.times_ms],
    }


def _case_from_json(data: Mapping[str, Any]) -> CaseTiming:
    converted = {
        "inputs": {name: tuple(shape) for name, shape in data["inputs"].items()},
        "latency_ms": Percentiles.from_json(data["latency_ms"]),
        "speedup": Estimate.from_json(data["speedup"]),
        "memory": None if data["memory"] is None else PeakMemory(**data["memory"]),
        "shaky": tuple(data["shaky"]),
        "times_ms": tuple(tuple(map(_time_ms, times)) for times in data["times_ms"]),
    }
    return CaseTiming(**{**data, **converted})


def _time_ms(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value < inf:
        raise ValueError(f"{value!r} is no time of a call")
    return float(value)
