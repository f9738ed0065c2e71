"""How often the gate of `bench` errs on a loaded machine, and how often it finds what has become slower.

The models are chains of equal convolutions: 40 of them against 40 (A/A), 44 (10 % more work) and 42 (5 %). Each trial
is one `bench(..., max_regression=...)` of two files, as the command does it, beside a process that keeps one core busy
all the time. The two files of an A/A trial are the same bytes.

Trials that are there already are kept: a run that was ended goes on with the next one.
Usage: python benchmarks/gate/run.py [--trials 100]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from onnxdistill.device.bench import bench

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.chains import convolutions
from benchmarks.summaries import this_machine, write_summary

CHANNELS, SIZE, CONVOLUTIONS = 16, 24, 40
TRIALS = {
    "equal_at_5_percent": (40, 0.05),
    "ten_percent_slower_at_5_percent": (44, 0.05),
    "five_percent_slower_at_2_percent": (42, 0.02),
}
RESULTS = Path(__file__).parent / "results.json"


def _busy(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


@contextmanager
def load_on_one_core() -> Iterator[None]:
    """Keeps the last core busy."""
    process = multiprocessing.get_context("spawn").Process(
        target=_busy, args=(max(os.sched_getaffinity(0)),), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def trial(folder: Path, count: int, limit: float, seed: int) -> dict[str, Any]:
    """One gate: the baseline against a chain of so many convolutions."""
    old = convolutions(folder / "old.onnx", CHANNELS, SIZE, CONVOLUTIONS)
    new = convolutions(folder / "new.onnx", CHANNELS, SIZE, count)
    begin = time.monotonic()
    result = bench({"old": old, "new": new}, max_regression=limit, seed=seed)
    (verdict,) = result.verdicts
    return {
        "outcome": verdict.outcome,
        "slowdown_percent": [round(value, 3) for value in verdict.measured.__dict__.values()],
        "openings": len(result.cases[0].times_ms),
        "seconds": round(time.monotonic() - begin, 2),
    }


@click.command()
@click.option("--trials", default=100, show_default=True)
def main(trials: int) -> None:
    """Makes the trials of all kinds in turns."""
    results: dict[str, list[dict[str, Any]]] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    with load_on_one_core(), tempfile.TemporaryDirectory() as folder:
        for seed in range(trials):
            for kind, (count, limit) in TRIALS.items():
                done = results.setdefault(kind, [])
                if len(done) <= seed:
                    done.append(trial(Path(folder), count, limit, seed))
                    print(kind, seed, done[-1], flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    summarise(results)


def summarise(results: dict[str, list[dict[str, Any]]]) -> None:
    """Counts what was raised."""
    figures: dict[str, float] = {}
    for kind, done in results.items():
        figures[f"{kind}_trials_count"] = len(done)
        figures[f"{kind}_raised_count"] = sum(one["outcome"] == "missed" for one in done)
        figures[f"{kind}_median_slowdown_percent"] = float(np.median([one["slowdown_percent"][0] for one in done]))
        figures[f"{kind}_median_s"] = float(np.median([one["seconds"] for one in done]))
    share = {kind: figures[f"{kind}_raised_count"] / figures[f"{kind}_trials_count"] for kind in results}
    holds = {
        "at_most_1_of_100_false_alarms": share["equal_at_5_percent"] <= 0.01,
        "at_least_95_of_100_of_ten_percent_found": share["ten_percent_slower_at_5_percent"] >= 0.95,
        "at_least_90_of_100_of_five_percent_found": share["five_percent_slower_at_2_percent"] >= 0.90,
    }
    claim = (
        f"with one core busy, {figures['equal_at_5_percent_raised_count']:.0f} of "
        f"{figures['equal_at_5_percent_trials_count']:.0f} gates of equal files raise an alarm; models with 10 % more "
        f"work are found in {figures['ten_percent_slower_at_5_percent_raised_count']:.0f} of "
        f"{figures['ten_percent_slower_at_5_percent_trials_count']:.0f} at a limit of 5 %, with 5 % more in "
        f"{figures['five_percent_slower_at_2_percent_raised_count']:.0f} of "
        f"{figures['five_percent_slower_at_2_percent_trials_count']:.0f} at a limit of 2 %"
    )
    write_summary("gate", claim, "python benchmarks/gate/run.py", figures, holds, this_machine())


if __name__ == "__main__":
    main()
