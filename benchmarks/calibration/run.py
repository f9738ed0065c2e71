"""Calibration of a ResNet-50: memory with few and with many images, time against ONNX Runtime's own, and the ranges.

Random weights and random images, made on the fly: neither memory nor time depends on what they show. Every measurement
is a process of its own. ONNX Runtime keeps the activations of all images until the last one has been run: of 256 images
at 224 pixels, 28 GB. Both are therefore timed on 256 images of `SPEED_SIZE` pixels, where these take 15 GB, in turns,
from opening the model to the ranges. The ranges of `CHECKED_IMAGES` images are compared with numpy's of all values at
once.

A part that is measured again replaces its results; the summary is written once there are all three.

Usage: python benchmarks/calibration/run.py [--rounds 3] [--part speed|ranges|memory]
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.quantization import calibration
from onnxdistill.quantization.ranges import find_range

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

FEW, MANY, SIZE = 64, 1024, 224
SPEED_IMAGES, SPEED_SIZE = 256, 160
CHECKED_IMAGES = 8
BATCH = 32
PARTS = ("speed", "ranges", "memory")
Feeds = dict[str, Any]


def batches(images: int, size: int) -> Iterator[Feeds]:
    for index in range(images // BATCH):
        rng = np.random.default_rng(index)
        yield {"input": rng.standard_normal((BATCH, 3, size, size), dtype=np.float32)}


def ours(path: Path, images: int, size: int) -> int:
    model = onnx.load(path)  # the shapes are in it
    observed = calibration.find_activations(model).observed
    histograms = calibration.collect(model, observed, batches(images, size))
    return len([find_range(histogram, "percentile") for histogram in histograms.values()])


class Reader(CalibrationDataReader):
    def __init__(self, images: int, size: int) -> None:
        self._batches = batches(images, size)

    def get_next(self) -> Feeds | None:
        return next(self._batches, None)


def theirs(path: Path, images: int, size: int) -> int:
    """As quantize_static does it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            path,
            list(calibration.QUANTIZABLE),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Percentile,
        )
        calibrator.collect_data(Reader(images, size))
        return len(calibrator.compute_data().data)


WAYS: dict[str, Callable[[Path, int, int], int]] = {"ours": ours, "theirs": theirs}


def measure(way: str, path: Path, images: int, size: int) -> dict[str, float]:
    """Seconds and peak memory of one calibration, in a process of its own."""
    command = [sys.executable, __file__, "--measure", way, "--model", str(path), str(images), str(size)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(way, images, "images of", size, {key: round(value, 2) for key, value in result.items()}, flush=True)
    return result


def measured(way: str, path: Path, images: int, size: int) -> dict[str, float]:
    started, worked = time.perf_counter(), time.process_time()
    tensors = WAYS[way](path, images, size)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak, "tensors": tensors}


def export_resnet(folder: Path, size: int) -> Path:
    # Not at the top: the measured processes need no torch.
    import torch
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from onnxdistill.networks import build_network
    from onnxdistill.recipe import ExportTable
    from onnxdistill.stages.export import export

    path = folder / f"resnet50-{size}.onnx"
    network = build_network("torchvision:resnet50", 1000, 0)
    export(network, torch.zeros(3, 3, size, size), path, ExportTable())
    prepared = path.with_name(f"prepared-{size}.onnx")
    quant_pre_process(str(path), str(prepared))
    return prepared


def bins_off(path: Path, size: int) -> dict[str, float]:
    """The largest distances of our ranges from numpy's of all values, in bins of the tensor's histogram."""
    model = onnx.load(path)
    names = calibration.find_activations(model).observed
    images = next(batches(BATCH, size))["input"][:CHECKED_IMAGES]
    histograms = calibration.collect(model, names, [{"input": images}])
    largest = {"minmax": 0.0, "percentile": 0.0}
    inner = [name for name in names if name != "input"]
    for start in range(0, len(inner), 10):
        group = inner[start : start + 10]
        session = open_session(calibration.with_outputs(model, group), SessionSettings())
        for name, values in session.run({"input": images}).items():
            ordered = np.sort(values, axis=None)
            cut = int(ordered.size * 0.00001 + 1e-6)
            below = 0 if ordered[0] >= 0 else cut // 2
            expected = {
                "minmax": (ordered[0], ordered[-1]),
                "percentile": (ordered[below], ordered[-1 - (cut - below)]),
            }
            width = histograms[name].width
            for method, (low, high) in expected.items():
                covered = find_range(histograms[name], method)  # type: ignore[arg-type]  # mypy sees any str
                assert covered is not None
                off = max(abs(covered.low - min(low, 0)), abs(covered.high - max(high, 0))) / width
                largest[method] = max(largest[method], float(off))
    print("bins off", largest, flush=True)
    return largest


def speed(folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    model = export_resnet(folder, SPEED_SIZE)
    measurements: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for index in range(rounds):
        for way in sorted(WAYS, reverse=bool(index % 2)):
            measurements[way].append(measure(way, model, SPEED_IMAGES, SPEED_SIZE))
    return measurements


def memory(folder: Path) -> dict[str, dict[str, float]]:
    model = export_resnet(folder, SIZE)
    return {str(images): measure("ours", model, images, SIZE) for images in (FEW, MANY)}


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Of the timing.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, help="All by default.")
@click.option("--measure", "way", type=click.Choice(list(WAYS)), hidden=True)
@click.option("--model", type=click.Path(path_type=Path), hidden=True)
@click.argument("sizes", nargs=-1, type=int)
def main(rounds: int, parts: tuple[str, ...], way: str | None, model: Path, sizes: tuple[int, ...]) -> None:
    """Measures speed, ranges and memory."""
    if way is not None:
        print(json.dumps(measured(way, model, *sizes)))
        return
    file = Path(__file__).parent / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            if part == "speed":
                results[part] = speed(Path(folder), rounds)
            elif part == "ranges":
                results[part] = bins_off(export_resnet(Path(folder), SIZE), SIZE)
            else:
                results[part] = memory(Path(folder))
            file.write_text(json.dumps(results, indent=1) + "\n")
    if results.keys() >= set(PARTS):
        summarise(results)


def summarise(results: dict[str, Any]) -> None:
    times = {
        way: np.array([each["seconds"] for each in measurements]) for way, measurements in results["speed"].items()
    }
    ratios = times["theirs"] / times["ours"]
    peaks = {way: measurements[0]["peak_mib"] for way, measurements in results["speed"].items()}
    more = results["memory"][str(MANY)]["peak_mib"] / results["memory"][str(FEW)]["peak_mib"]
    figures = {
        f"memory_of_{MANY}_images_over_{FEW}_x": more,
        "time_of_onnx_runtime_over_ours_x": float(np.median(ratios)),
        "time_of_onnx_runtime_over_ours_low_x": float(ratios.min()),
        "time_of_onnx_runtime_over_ours_high_x": float(ratios.max()),
        "memory_of_onnx_runtime_over_ours_x": peaks["theirs"] / peaks["ours"],
        "ours_s": float(np.median(times["ours"])),
        "onnx_runtime_s": float(np.median(times["theirs"])),
    }
    holds = {
        "memory_within_5_percent": abs(more - 1) < 0.05,
        "time_at_least_5_times_less": bool(ratios.min() >= 5),
        # Kernels round differently in a session with other outputs.
        "ranges_within_one_bin": max(results["ranges"].values()) <= 1.01,
    }
    claim = (
        f"calibrating ResNet-50 at {SIZE} pixels with {MANY:,} images takes {100 * (more - 1):+.1f} % memory against "
        f"{FEW}; ONNX Runtime's Percentile calibrator takes {np.median(ratios):.1f} times as long for the ranges of "
        f"{SPEED_IMAGES} images at {SPEED_SIZE} pixels; the interval is the least and the most of the rounds"
    )
    write_summary("calibration", claim, "python benchmarks/calibration/run.py", figures, holds, this_machine())


if __name__ == "__main__":
    main()
