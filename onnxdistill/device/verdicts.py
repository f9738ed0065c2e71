"""Limits on latency: whether a model has become slower than another, and whether a percentile keeps a bound.

A limit is missed only if the whole 95 % interval says so, so that noise alone does not fail a build.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal

from onnxdistill.device.measuring.statistics import NEEDED_TIMINGS, Estimate, Percentiles
from onnxdistill.errors import UsageError

Outcome = Literal["met", "missed", "unclear"]

_MS_PER_UNIT = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SLO = re.compile(r"(?:(?P<name>median|p\d+(?:\.\d+)?)\s*(?:=|<=)\s*)?(?P<bound>\d+(?:\.\d+)?)\s*(?P<unit>us|ms|s)")


@dataclass(frozen=True)
class Slo:
    """A service level objective: a percentile of the latency is to stay within a bound.

    Attributes:
        percent: Of the calls, that have to be as fast.
        bound_ms: Milliseconds.

    Raises:
        UsageError: If it is of a percentile that is not reported.
    """

    percent: float
    bound_ms: float

    def __post_init__(self) -> None:
        if self.percent not in NEEDED_TIMINGS:
            known = ", ".join(map(_named, NEEDED_TIMINGS))
            raise UsageError(f"There is no {_named(self.percent)} in a benchmark.", f"Limit one of {known}.")

    def __str__(self) -> str:
        return f"{_named(self.percent)} ≤ {self.bound_ms:g} ms"


@dataclass(frozen=True)
class Verdict:
    """Whether a case meets a limit.

    Attributes:
        case: Name of the case.
        limit: The limit in words.
        measured: What is limited: a slowdown in per cent, or a latency in ms; or the rate that was found, and the
            lowest that misses.
        unit: Of it: `%`, `ms` or `requests/s`.
        bound: What it is not to exceed, in the same unit.
        outcome: `missed` only if the whole interval is above the bound, `met` if it is below, `unclear` in between.
    """

    case: str
    limit: str
    measured: Estimate
    unit: str
    bound: float
    outcome: Outcome

    def __str__(self) -> str:
        if not isfinite(self.measured.high) and not self.measured.value:
            return f"{self.case}: {self.limit}: too few calls to tell"
        figures = f"{self.measured.value:.4g} {self.unit} ({self.measured.low:.4g} to {self.measured.high:.4g})"
        return f"{self.case}: {self.limit}: {figures}, {self.outcome}"

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {**self.__dict__, "measured": self.measured.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_json`."""
        return cls(**{**data, "measured": Estimate.from_json(data["measured"])})


def parse_slo(text: str) -> Slo:
    """Reads `p99=20ms`, `median=1.5ms` or `20ms`, which is of the 99th percentile.

    Raises:
        UsageError: If it does not read so, or names a percentile that is not reported.
    """
    match = _SLO.fullmatch(text.strip())
    if match is None or float(match["bound"]) <= 0:
        raise UsageError(f"The limit {text!r} does not read as p99=20ms.", "Write for example p95=5ms or median=800us.")
    name = match["name"] or "p99"
    percent = 50.0 if name == "median" else float(name[1:])
    return Slo(percent, float(match["bound"]) * _MS_PER_UNIT[match["unit"]])


def check_slo(slo: Slo, runs: int, *, under_load: bool = False) -> None:
    """Makes sure that so many calls can tell.

    Args:
        slo: The bound.
        runs: Calls, or requests under load.
        under_load: Whether they are requests.

    Raises:
        UsageError: If they are too few for the percentile.
    """
    if runs < NEEDED_TIMINGS[slo.percent]:
        what, fix = (
            ("requests", "Ask for more, with --seconds or --rate.")
            if under_load
            else ("timed calls", "Time longer, with --seconds or --runs.")
        )
        raise UsageError(
            f"{runs} {what} do not support p{slo.percent:g}, which takes at least {NEEDED_TIMINGS[slo.percent]:,}.",
            fix,
        )


def slowdown_verdict(case: str, baseline: str, speedup: Estimate, max_regression: float) -> Verdict:
    """Whether a case is slower than its baseline by more than a share.

    Args:
        case: Name of the case.
        baseline: Name of its baseline.
        speedup: Against the baseline.
        max_regression: As a share: 0.05 for 5 %.
    """
    slower = Estimate(*(100 * (1 / ratio - 1) for ratio in (speedup.value, speedup.high, speedup.low)))
    bound = 100 * max_regression
    limit = f"at most {bound:g} % slower than {baseline}"
    return Verdict(case, limit, slower, "%", bound, _outcome(slower, bound))


def slo_verdict(case: str, latency_ms: Percentiles, slo: Slo) -> Verdict:
    """Whether a percentile of the latency keeps its bound; of too few calls, only that it surely misses can be told."""
    fields = {50.0: latency_ms.median, 90.0: latency_ms.p90, 95.0: latency_ms.p95, 99.0: latency_ms.p99}
    measured = fields.get(slo.percent, latency_ms.p999)
    if measured is None:
        # It is no lower than those before it.
        percent, highest = [(one, estimate) for one, estimate in fields.items() if estimate is not None][-1]
        if highest.low > slo.bound_ms:
            limit = f"{slo}, and {_named(percent)} is more"
            return Verdict(case, limit, highest, "ms", slo.bound_ms, "missed")
        return Verdict(case, str(slo), Estimate(0.0, 0.0, inf), "ms", slo.bound_ms, "unclear")
    return Verdict(case, str(slo), measured, "ms", slo.bound_ms, _outcome(measured, slo.bound_ms))


def _named(percent: float) -> str:
    return "median" if percent == 50 else f"p{percent:g}"


def _outcome(measured: Estimate, bound: float) -> Outcome:
    if measured.low > bound:
        return "missed"
    return "met" if measured.high <= bound else "unclear"
