"""int8 of real networks at their real sizes: float32, ONNX Runtime's documented int8, and ours, timed in turns.

One thread, batch 1. `documented` is quant_pre_process and quantize_static with their defaults: one scale for each
tensor, and the range of all calibration values. Ours is the stage `quantize` of `compress` with its ladder of accuracy,
which may come to the conclusion that float32 is faster. Networks with given weights are
scored on the 10,000 test images of CIFAR-10, which nothing is decided by; the others have random weights, and only
latency is measured.

Results that are there already are kept: a run that was ended goes on with the next network.
Usage: python benchmarks/quantize/run.py [--data CIFAR10 --weights FOLDER] [--seconds 30] [--only NAME ...]
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from onnxdistill.data import load_images
from onnxdistill.device.bench import bench
from onnxdistill.device.measuring.compare import compare
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.session import SessionSettings
from onnxdistill.networks import build_network
from onnxdistill.quantization.ladder import Loss
from onnxdistill.quantization.workshop import Calibration, Workshop
from onnxdistill.recipe import DataTable, ExportTable, QuantizeTable
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import QuantizeResult, quantize_measured
from onnxdistill.stages.verify import verify
from onnxdistill.tasks.base import paired_interval
from onnxdistill.tasks.classification import Classification

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.documented import documented
from benchmarks.random_networks import export_random, images
from benchmarks.summaries import this_machine, write_summary

# Built-in networks, and the files of weights that are looked for.
TRAINED = {
    "cifar-resnet20": "resnet20-cifar10-jpeg.pt",
    "cifar-resnet56": "resnet56-cifar10-jpeg.pt",
    "cifar-vgg16": "vgg16-cifar10-jpeg.pt",
    "cifar-mobilenet_v2": "mobilenetv2-cifar10-jpeg.pt",
}
RANDOM = {
    "resnet18": 224,
    "resnet50": 224,
    "mobilenet_v2": 224,
    "mobilenet_v3_small": 224,
    "mobilenet_v3_large": 224,
    "efficientnet_b0": 224,
    "lraspp_mobilenet_v3_large": 520,
    "deeplabv3_mobilenet_v3_large": 520,
}
SQUEEZE_AND_EXCITE = ("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "lraspp_mobilenet_v3_large")
CALIBRATION_IMAGES = 4
MOST_LOST_POINTS = 0.5
RESULTS = Path(__file__).parent / "results.json"
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


class Stopwatch:
    """Judges int8 files by latency, and by validation accuracy where there is a task."""

    def __init__(self, source: Path, task: Classification | None) -> None:
        self.limit = QuantizeTable().max_drop
        self.measurable = task is not None
        self._source, self._task = source, task
        self._score = None if task is None else verify(source, task, SessionSettings(), "validation")

    def loss(self, path: Path) -> Loss:
        assert self._task is not None
        assert self._score is not None
        score = verify(path, self._task, SessionSettings(), "validation")
        points = self._score.value - score.value
        interval = paired_interval(self._score, score, points)
        assert interval is not None, "every sample is right or wrong"
        return Loss(points, interval[0])

    def speedup(self, path: Path) -> Estimate:
        return compare(self._source, path, SessionSettings())

    def refusal(self, loss: Loss) -> str:
        return f"{loss.points:.2f} points lost" if loss.points > self.limit and loss.low > 0 else ""


def measure(source: Path, calibration: Calibration, task: Classification | None, seconds: float) -> dict[str, Any]:
    """Makes both int8 files, and times and scores all three."""
    theirs = documented(source, source.with_name("documented.onnx"), calibration())
    workshop = Workshop(source, calibration)
    result = quantize_measured(workshop, source.with_name("ours.onnx"), QuantizeTable(), Stopwatch(source, task))
    ours = source if result.refusal else result.path
    files = {"float32": source, "documented": theirs, "ours": ours}
    timed = bench(files, threads=1, batch=1, seconds=seconds, seed=0)
    rows = {
        case.name: {
            "median_ms": case.latency_ms.median.value,
            "speedup": asdict(case.speedup),
            "size_bytes": case.size_bytes,
            "top1_percent": None if task is None else verify(files[case.name], task, SessionSettings(), "test").value,
        }
        for case in timed.cases
    }
    return {"variants": rows, "doubts": timed.doubts(), "quantize": found(result)}


def found(result: QuantizeResult) -> dict[str, Any]:
    """How ours came about."""
    schemes = [{"scheme": one.scheme, "speedup": asdict(one.speedup)} for one in result.variants]
    rungs = [asdict(rung) for rung in result.rungs]
    return {"scheme": str(result.form), "refusal": result.refusal, "schemes": schemes, "rungs": rungs}


def trained(name: str, weights: Path, task: Classification, path: Path) -> Path:
    """Writes a network with given weights as a float32 file."""
    network = build_network(name, 10, 0)
    network.load_state_dict(torch.load(weights, weights_only=True))
    names = {"input_name": task.input_name, "output_name": task.output_name}
    export(network, task.example_input(3), path, ExportTable(), **names)
    return path


def random_calibration(size: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    yield {"input": images(CALIBRATION_IMAGES, size, 0)}


@click.command()
@click.option("--data", type=FOLDER_THERE, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, help="Folder of NAME-cifar10-jpeg.pt.")
@click.option("--seconds", default=30.0, show_default=True, help="Of timing for each network, all files together.")
@click.option("--only", multiple=True, help="Only these networks.")
def main(data: Path | None, weights: Path | None, seconds: float, only: tuple[str, ...]) -> None:
    """Makes results.json, and summary.json if no network is missing that can be measured."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    task = None
    if data is not None:
        task = Classification(load_images(DataTable(source="folder", root=str(data), image_size=32), seed=0))
    for name in itertools.chain(TRAINED, RANDOM):
        if name in results or (only and name not in only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "float32.onnx"
            if name in RANDOM:
                size = RANDOM[name]
                export_random(name, size, source)
                results[name] = measure(source, lambda size=size: random_calibration(size), None, seconds)
            elif task is not None and weights is not None and (weights / TRAINED[name]).is_file():
                trained(name, weights / TRAINED[name], task, source)
                results[name] = measure(source, lambda: calibration_of(task), task, seconds)
            else:
                continue
        shown = {label: f"{row['speedup']['value']:.2f}x" for label, row in results[name]["variants"].items()}
        print(name, shown, flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if results.keys() >= RANDOM.keys():
        summarise(results)


def calibration_of(task: Classification) -> Iterator[dict[str, NDArray[np.generic]]]:
    for batch in task.calibration_batches(32):
        yield {task.input_name: batch.inputs.numpy()}


def summarise(results: dict[str, Any]) -> None:
    """Speed-ups over float32 with their intervals, and accuracies where they were measured."""
    figures: dict[str, float] = {}
    not_slower, not_behind, lost_points = [], [], []
    for name, result in results.items():
        key = name.replace("-", "_")
        rows = result["variants"]
        for label in ("documented", "ours"):
            for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                figures[f"{key}_{label}_speedup{suffix}_x"] = rows[label]["speedup"][end]
        for label, row in rows.items():
            if row["top1_percent"] is not None:
                figures[f"{key}_{label}_percent"] = row["top1_percent"]
        if rows["ours"]["top1_percent"] is not None:
            lost_points.append(rows["float32"]["top1_percent"] - rows["ours"]["top1_percent"])
        # Equal files: float32 ships where int8 isn't faster.
        not_slower.append(bool(result["quantize"]["refusal"]) or rows["ours"]["speedup"]["low"] > 1)
        not_behind.append(rows["ours"]["speedup"]["high"] >= rows["documented"]["speedup"]["low"])
    least = min(figures[f"{name}_ours_speedup_x"] for name in SQUEEZE_AND_EXCITE)
    lows = [figures[f"{name}_ours_speedup_low_x"] for name in SQUEEZE_AND_EXCITE]
    write_summary(
        "quantize",
        f"int8 that is never slower than float32 nor than ONNX Runtime's documented int8, on {len(results)} networks; "
        f"at least {least:.2f} times as fast as float32 on those with squeeze-and-excite",
        "python benchmarks/quantize/run.py --data CIFAR10 --weights FOLDER",
        figures,
        {
            "never_slower_than_float32": all(not_slower),
            "never_slower_than_documented": all(not_behind),
            "at_least_1_3_times_float32_with_squeeze_and_excite": all(low >= 1.3 for low in lows),
            "at_most_half_a_point_below_float32": bool(lost_points)
            and all(lost <= MOST_LOST_POINTS for lost in lost_points),
        },
        this_machine(),
    )


if __name__ == "__main__":
    main()
