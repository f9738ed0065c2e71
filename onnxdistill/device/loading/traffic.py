"""The load that a benchmark puts on each of its cases, one after the other, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from onnxdistill.device.loading.clients import check_load
from onnxdistill.device.loading.closedloop import ClosedLoopResult, closed_loop
from onnxdistill.device.loading.openloop import OpenLoopResult, check_rate, open_loop
from onnxdistill.device.loading.search import Probe, RateSearch, highest_rate
from onnxdistill.device.measuring.statistics import Estimate, Percentiles, Series, summarize
from onnxdistill.device.measuring.timing import Runner
from onnxdistill.device.numbertext import number
from onnxdistill.device.verdicts import Outcome, Slo, Verdict, slo_verdict
from onnxdistill.errors import UsageError

_KINDS = {"open loop": OpenLoopResult, "closed loop": ClosedLoopResult, "search": RateSearch}

# A search tries ten rates or so, each for a fraction of the time.
_PROBE_SHARE, _SEARCH_FACTOR = 0.3, 6.0

# Intervals of the latencies come from so many parts of a run, one after the other.
_PARTS = 5


@dataclass(frozen=True)
class Traffic:
    """What load to put on a case.

    Attributes:
        rate: Requests a second that arrive at random; `max` for the highest that meets `slo`; None for clients that
            call back to back.
        clients: Workers that take the requests, or clients that call, on one session.
        seconds: For how long, for each case; a search takes some times as long.
        slo: What the latency is to meet.
    """

    rate: float | Literal["max"] | None
    clients: int
    seconds: float
    slo: Slo | None

    def check(self) -> None:
        """Makes sure that it can be done.

        Raises:
            UsageError: If the highest rate is asked for and not said of what, or if a number is out of range.
        """
        check_load(self.seconds, self.clients)
        if isinstance(self.rate, float | int):
            check_rate(self.rate, self.seconds)
        if self.rate == "max" and self.slo is None:
            raise UsageError("The highest rate of what latency?", "Say it, for example --slo p99=20ms.")


@dataclass(frozen=True, eq=False)
class CaseLoad:
    """A case under load.

    Attributes:
        case: Its name.
        result: What was measured, of one of three kinds.
    """

    case: str
    result: OpenLoopResult | ClosedLoopResult | RateSearch

    @property
    def kind(self) -> str:
        """`open loop`, `closed loop` or `search`."""
        return next(kind for kind, made in _KINDS.items() if isinstance(self.result, made))

    def latency_ms(self) -> Percentiles | None:
        """What the latencies come to; None of a search, which has many."""
        if isinstance(self.result, RateSearch):
            return None
        parts: list[Series] = [part[:, None] for part in np.array_split(self.result.latency_ms, _PARTS) if len(part)]
        return summarize(parts, np.random.default_rng(0), opened_anew=False)

    def __str__(self) -> str:
        if isinstance(self.result, RateSearch):
            slo = Slo(self.result.percent, self.result.limit_ms)
            rate = self.result.rate_per_s
            found = "found no rate that keeps" if rate is None else f"{number(rate)} requests/s keep"
            return f"{self.case}: {found} {slo}{'' if self.result.resolved else ', in the time that there was'}"
        latency_ms = self.latency_ms()
        assert latency_ms is not None
        figures = f"median {number(latency_ms.median.value)} ms"
        if latency_ms.p99 is not None:
            figures += f", p99 {number(latency_ms.p99.value)} ms"
        if isinstance(self.result, OpenLoopResult):
            done = f"{number(self.result.achieved_per_s)} done{', overloaded' if self.result.saturated else ''}"
            return f"{self.case} at {self.result.rate_per_s:g} requests/s: {done}, {figures}"
        clients = self.result.clients
        at_once = f"{clients} client{'s' if clients > 1 else ''}"
        return f"{self.case} with {at_once}: {number(self.result.throughput_per_s)} calls/s, {figures}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {"case": self.case, "kind": self.kind, **self.result.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseLoad:
        """The inverse of `to_json`."""
        made = _KINDS[data["kind"]]
        values = {field.name: data[field.name] for field in fields(made)}
        if made is RateSearch:
            values["probes"] = tuple(Probe(**probe) for probe in values["probes"])
        else:
            values = {name: np.asarray(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(data["case"], made(**values))


def put_load(
    case: str, runner: Runner, traffic: Traffic, rng: np.random.Generator, on_progress: Callable[[float], None]
) -> CaseLoad:
    """Puts a case under load.

    Args:
        case: Its name.
        runner: Runs it once; warm.
        traffic: What load.
        rng: Draws the arrivals.
        on_progress: Is told of a search which share of its time has passed.

    Raises:
        UsageError: If a number is out of range.
    """
    if traffic.rate is None:
        return CaseLoad(case, closed_loop(runner, clients=traffic.clients, seconds=traffic.seconds))
    if traffic.rate != "max":
        result = open_loop(runner, rate_per_s=traffic.rate, seconds=traffic.seconds, rng=rng, clients=traffic.clients)
        return CaseLoad(case, result)
    assert traffic.slo is not None
    tried: list[Probe] = []

    def on_probe(probe: Probe) -> None:
        tried.append(probe)
        on_progress(1 - 0.75 ** len(tried))  # how many there will be is not known

    search = highest_rate(
        runner,
        percent=traffic.slo.percent,
        limit_ms=traffic.slo.bound_ms,
        rng=rng,
        clients=traffic.clients,
        probe_seconds=_PROBE_SHARE * traffic.seconds,
        seconds_at_most=_SEARCH_FACTOR * traffic.seconds,
        on_probe=on_probe,
    )
    return CaseLoad(case, search)


def load_verdict(load: CaseLoad, slo: Slo) -> Verdict:
    """Whether a case under load keeps a bound; a search does if it has found a rate."""
    if isinstance(load.result, RateSearch):
        outcome: Outcome = "met" if load.result.rate_per_s else "missed" if load.result.resolved else "unclear"
        held, missed = load.result.rate_per_s or 0.0, load.result.missed_per_s
        rate = Estimate(held, held, held if missed is None else missed)
        return Verdict(load.case, f"highest rate that keeps {slo}", rate, "requests/s", 0.0, outcome)
    latency_ms = load.latency_ms()
    assert latency_ms is not None
    verdict = slo_verdict(load.case, latency_ms, slo)
    if isinstance(load.result, OpenLoopResult):
        under = f"{verdict.limit} at {load.result.rate_per_s:g} requests/s"
        outcome = "missed" if load.result.saturated else verdict.outcome
        return Verdict(load.case, under, verdict.measured, "ms", slo.bound_ms, outcome)
    clients = load.result.clients
    under = f"{verdict.limit} with {clients} client{'s' if clients > 1 else ''}"
    return Verdict(load.case, under, verdict.measured, "ms", slo.bound_ms, verdict.outcome)
