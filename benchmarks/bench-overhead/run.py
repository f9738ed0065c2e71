"""Whether `bench` measures what a bare loop of `session.run` does: medians in turns, each with sessions of its own.

A model of some 0.2 ms and one of some 40 ms, chains of equal convolutions. A round is one bare loop (a fresh
`InferenceSession` with one thread, a warm-up, then timed calls) and one `bench` of the file, in an order that changes.

Usage: python benchmarks/bench-overhead/run.py [--rounds 12]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnxruntime

from onnxdistill.device.bench import bench
from onnxdistill.device.measuring.statistics import geometric_mean

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.chains import convolutions
from benchmarks.summaries import this_machine, write_summary

# Channels, size of the image, convolutions; calls that are timed.
MODELS = {"fast": ((16, 16, 12), 1500), "slow": ((64, 64, 20), 60)}


def bare_loop_ms(path: Path, calls: int) -> float:
    """What somebody writes who has never seen a benchmark: the median of `calls` runs, after a few others."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    feeds = {port.name: np.random.default_rng(0).standard_normal(port.shape, dtype=np.float32)}
    for _ in range(max(5, calls // 10)):
        session.run(None, feeds)
    times_ns = []
    for _ in range(calls):
        begin = time.perf_counter_ns()
        session.run(None, feeds)
        times_ns.append(time.perf_counter_ns() - begin)
    return float(np.median(times_ns)) / 1e6


def bench_ms(path: Path, calls: int) -> float:
    """The median that `bench` reports."""
    return bench([path], runs=calls).cases[0].latency_ms.median.value


@click.command()
@click.option("--rounds", default=12, show_default=True)
def main(rounds: int) -> None:
    """Measures both models in turns."""
    raw: dict[str, dict[str, list[float]]] = {name: {"bare_ms": [], "bench_ms": []} for name in MODELS}
    ways = {"bare_ms": bare_loop_ms, "bench_ms": bench_ms}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: convolutions(Path(folder) / f"{name}.onnx", *sizes) for name, (sizes, _) in MODELS.items()}
        for index in range(rounds):
            for name, (_, calls) in MODELS.items():
                for way in sorted(ways, reverse=bool(index % 2)):
                    raw[name][way].append(ways[way](paths[name], calls))
                print(name, {way: round(times[-1], 4) for way, times in raw[name].items()}, flush=True)
    figures: dict[str, float] = {}
    holds = {}
    for name, times in raw.items():
        pairs = zip(times["bench_ms"], times["bare_ms"], strict=True)
        ratio = geometric_mean([with_bench / bare for with_bench, bare in pairs])
        figures |= {
            f"{name}_bare_median_ms": float(np.median(times["bare_ms"])),
            f"{name}_over_bare_x": ratio.value,
            f"{name}_over_bare_low_x": ratio.low,
            f"{name}_over_bare_high_x": ratio.high,
        }
        holds[f"{name}_within_2_percent"] = 0.98 <= ratio.value <= 1.02
    (Path(__file__).parent / "times_ms.json").write_text(json.dumps(raw, indent=1) + "\n")
    claim = (
        f"the median that bench reports is {figures['fast_over_bare_x']:.3f} times that of a bare loop for a model of "
        f"{figures['fast_bare_median_ms']:.2g} ms, and {figures['slow_over_bare_x']:.3f} times for one of "
        f"{figures['slow_bare_median_ms']:.0f} ms"
    )
    write_summary("bench-overhead", claim, "python benchmarks/bench-overhead/run.py", figures, holds, this_machine())


if __name__ == "__main__":
    main()
