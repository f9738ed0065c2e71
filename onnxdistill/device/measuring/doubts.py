"""Reasons not to trust a measurement; each is a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from onnxdistill.device.cases import Case
from onnxdistill.device.host import CpuTimes, HostFacts
from onnxdistill.device.measuring.statistics import Percentiles, Series
from onnxdistill.device.measuring.timing import Warmup
from onnxdistill.device.runtime import short_name
from onnxdistill.device.session import Session

_FEW_CALLS = 30
_WIDE_INTERVAL = 0.05
_BUSY_CPUS = 0.25
_DRIFT = 0.03

# Calling ONNX Runtime from Python costs some microseconds, which a shorter run than this does not dwarf.
_TINY_MS = 0.05


def of_machine(host: HostFacts, threads: int, begin: CpuTimes | None, end: CpuTimes | None) -> list[str]:
    """Those that lie in what else the machine did.

    Args:
        host: The facts from before the measurement.
        threads: Of the case with the most.
        begin: What the processors had done at its begin; None where that is not known.
        end: Likewise at its end.
    """
    cpus = min(float(host.usable_cpus), host.cpu_limit or float("inf"))
    reasons = []
    if threads > cpus:
        reasons.append(f"{threads} threads share {cpus:g} usable CPUs.")
    if begin is not None and end is not None:
        others = begin.others_until(end)
        if others > _BUSY_CPUS:
            reasons.append(f"Other processes kept {others:.1f} of {host.logical_cpus} CPUs busy meanwhile.")
    elif host.load_average is not None and threads <= cpus < host.load_average + threads:
        reasons.append(
            f"The machine was busy: a load average of {host.load_average:g} before the start, "
            f"and {threads} more thread{'s' if threads > 1 else ''}, on {cpus:g} usable CPUs."
        )
    return reasons


def of_drift(cases: Sequence[Sequence[Series]]) -> list[str]:
    """Whether all calls together became slower or faster on the way, as when the clock frequency changes.

    Args:
        cases: The series of each opening, of each case.
    """
    changes = []
    for openings in cases:
        every = np.concatenate([series.ravel() for series in openings])
        third = len(every) // 3
        if third * 3 < _FEW_CALLS:
            return []
        changes.append(np.log(np.median(every[-third:]) / np.median(every[:third])))
    change = float(np.exp(np.mean(changes))) - 1
    if abs(change) <= _DRIFT:
        return []
    way = "slower" if change > 0 else "faster"
    return [f"From the first to the last third, calls became {abs(change):.0%} {way}."]


def of_timing(latency_ms: Percentiles, warmup: Warmup) -> list[str]:
    """Those that lie in the timings of a case."""
    reasons = []
    median = latency_ms.median
    if latency_ms.count < _FEW_CALLS:
        reasons.append(f"Only {latency_ms.count} calls were timed.")
    if _WIDE_INTERVAL < median.uncertainty < inf:
        reasons.append(
            f"The median is uncertain: {median.low:.4g} to {median.high:.4g} ms, {2 * median.uncertainty:.0%} wide."
        )
    if not warmup.settled:
        reasons.append(f"The time of a call was not steady after {warmup.calls} warm-up calls.")
    if median.value < _TINY_MS:
        reasons.append(f"A call shorter than {_TINY_MS} ms is for a visible part the call from Python.")
    return reasons


def of_placement(session: Session, case: Case) -> list[str]:
    """Whether something of it runs elsewhere than was asked for."""
    nodes, asked = session.nodes_by_provider, case.settings.provider
    total, own = sum(nodes.values()), nodes.get(asked, 0)
    if asked != "CPUExecutionProvider" and session.provider == asked and not session.tells_placement:
        return [f"Which of its nodes run on {short_name(asked)}, if any, this ONNX Runtime does not tell."]
    if session.provider != asked or (total and not own):
        return [f"Nothing of it runs on {short_name(asked)}: all of it runs on the CPU."]
    if own == total:
        return []
    return [f"{total - own} of {total} nodes do not run on {short_name(asked)} but on the CPU."]
