"""Latency under a rate of arrivals against the theory: an M/D/1 queue, whose mean is known.

A model that takes nearly the same time for every call, one worker, Poisson arrivals. The mean latency of an M/D/1 queue
with a service time s at a load r is s + r s / (2 (1 - r)) (Pollaczek and Khinchine). s is the mean that the same calls
took, and r the rate of the arrivals times s.

Usage: python benchmarks/open-loop/run.py [--seconds 60]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np

from onnxdistill.device.feeds import random_feeds
from onnxdistill.device.loading.closedloop import closed_loop
from onnxdistill.device.loading.openloop import open_loop
from onnxdistill.device.measuring.statistics import geometric_mean
from onnxdistill.device.measuring.timing import warm_up
from onnxdistill.device.session import open_session

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

LOADS = (0.5, 0.8)
REPEATS = 6
MODEL = Path(__file__).parent.parent.parent / "models" / "digits" / "student.onnx"
BATCH = 64  # some milliseconds


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Of each of the repeats, at each load.")
def main(seconds: float) -> None:
    """Measures both loads in turns."""
    session = open_session(MODEL)
    runner = session.runner(random_feeds(session, BATCH, {}, np.random.default_rng(0)))
    warm_up({"model": runner})
    raw: dict[str, list[dict[str, float]]] = {f"{load:.0%}": [] for load in LOADS}
    for repeat in range(REPEATS):
        for load in LOADS:
            alone_ms = float(np.mean(closed_loop(runner, clients=1, seconds=2.0).latency_ms))
            rate = 1e3 * load / alone_ms
            result = open_loop(runner, rate_per_s=rate, seconds=seconds, rng=np.random.default_rng(repeat))
            service_ms = float(np.mean(result.service_ms))
            offered = result.offered_per_s * service_ms / 1e3
            predicted_ms = service_ms + offered * service_ms / (2 * (1 - offered))
            one = {
                "load": offered,
                "service_ms": service_ms,
                "service_deviation_ms": float(np.std(result.service_ms)),
                "requests": float(result.latency_ms.size),
                "predicted_mean_ms": predicted_ms,
                "measured_mean_ms": float(np.mean(result.latency_ms)),
            }
            raw[f"{load:.0%}"].append(one)
            print({name: round(value, 4) for name, value in one.items()}, flush=True)
    figures: dict[str, float] = {}
    holds = {}
    for name, runs in raw.items():
        ratio = geometric_mean([run["measured_mean_ms"] / run["predicted_mean_ms"] for run in runs])
        label = f"load_{name.removesuffix('%')}"
        figures |= {
            f"{label}_service_ms": float(np.mean([run["service_ms"] for run in runs])),
            f"{label}_over_theory_x": ratio.value,
            f"{label}_over_theory_low_x": ratio.low,
            f"{label}_over_theory_high_x": ratio.high,
        }
        holds[f"{label}_within_15_percent"] = abs(ratio.value - 1) <= 0.15
    (Path(__file__).parent / "runs.json").write_text(json.dumps(raw, indent=1) + "\n")
    claim = (
        f"the mean latency under Poisson arrivals is {figures['load_50_over_theory_x']:.3f} times that of an M/D/1 "
        f"queue at a load of 50 %, and {figures['load_80_over_theory_x']:.3f} times at 80 %"
    )
    write_summary("open-loop", claim, "python benchmarks/open-loop/run.py", figures, holds, this_machine())


if __name__ == "__main__":
    main()
