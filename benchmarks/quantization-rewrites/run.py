"""What each rewrite before and after quantization gains: int8 against float32, timed in turns, one thread, batch 1.

`documented` is ONNX Runtime's documented way: quant_pre_process and quantize_static with their defaults. `unsigned` has
unsigned activations and a scale for every channel of a weight besides; every further step adds one rewrite to the step
before, and the last one is all of them. Random weights and images: only latency is measured. Batch norms are set by one
batch, so that ranges are those of a network and not of vanishing signals.

Usage: python benchmarks/quantization-rewrites/run.py [--seconds 40] [--only NAME ...]
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType

from onnxdistill.device.bench import bench
from onnxdistill.quantization.placement import float_beginning
from onnxdistill.quantization.pooling import pool_globally
from onnxdistill.quantization.preparation import finish, prepare
from onnxdistill.quantization.shapes import infer_shapes

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.documented import documented, quantize
from benchmarks.random_networks import export_random, images
from benchmarks.summaries import this_machine, write_summary

SQUEEZE_AND_EXCITE = ("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0")
NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", *SQUEEZE_AND_EXCITE)
STEPS = ("documented", "unsigned", "pooling", "gates", "beginning", "hardswish")
SIZE = 224
IMAGES = 4


def variants(source: Path) -> dict[str, Path]:
    """The float file, and one for every step."""
    files = {"float32": source, **{step: source.with_name(f"{source.stem}-{step}.onnx") for step in STEPS}}
    simplified = files["documented"].with_name(f"{files['documented'].stem}-simplified.onnx")
    documented(source, files["documented"], calibration())
    plain = onnx.load(simplified)
    with_pooling = ir.from_proto(plain)
    pool_globally(with_pooling)
    prepared = prepare(onnx.load(source))
    excluded = float_beginning(prepared)
    quantize_unsigned(plain, files["unsigned"])
    quantize_unsigned(infer_shapes(ir.to_proto(with_pooling)), files["pooling"])
    quantize_unsigned(prepared, files["gates"])
    quantize_unsigned(prepared, files["beginning"], excluded)
    onnx.save(finish(onnx.load(files["beginning"])), files["hardswish"])
    return files


def quantize_unsigned(model: onnx.ModelProto, path: Path, excluded: tuple[str, ...] = ()) -> None:
    quantize(
        model,
        path,
        calibration(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=list(excluded),
    )


def calibration() -> Iterator[dict[str, NDArray[np.float32]]]:
    """Random images."""
    yield {"input": images(IMAGES, SIZE, 0)}


@click.command()
@click.option("--seconds", default=40.0, show_default=True, help="For each network, all variants together.")
@click.option("--only", multiple=True, help="Only these networks; the others keep their results.")
def main(seconds: float, only: tuple[str, ...]) -> None:
    """Makes results.json and summary.json."""
    folder = Path(__file__).parent
    place = folder / "results.json"
    results: dict[str, Any] = json.loads(place.read_text()) if only and place.is_file() else {}
    for name in NETWORKS:
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / f"{name}.onnx"
            export_random(name, SIZE, source)
            result = bench(variants(source), threads=1, batch=1, seconds=seconds, seed=0)
        results[name] = {
            "doubts": result.doubts(),
            "variants": {
                case.name: {
                    "median_ms": case.latency_ms.median.value,
                    "speedup_x": case.speedup.value,
                    "speedup_low_x": case.speedup.low,
                    "speedup_high_x": case.speedup.high,
                    "times_ms": case.times_ms,
                }
                for case in result.cases
            },
        }
        shown = {case.name: f"{case.latency_ms.median.value:.3f} ms {case.speedup.value:.2f}x" for case in result.cases}
        print(name, shown, flush=True)
        place.write_text(json.dumps(results) + "\n")
    if set(results) == set(NETWORKS):
        summarise(folder.name, results)


def summarise(name: str, results: dict[str, Any]) -> None:
    figures: dict[str, float] = {}
    for network in NETWORKS:
        for step, label in (("documented", "documented"), ("unsigned", "unsigned"), ("hardswish", "ours")):
            measured = results[network]["variants"][step]
            for key in ("speedup_x", "speedup_low_x", "speedup_high_x"):
                figures[f"{network}_{label}_{key}"] = measured[key]
    for network in SQUEEZE_AND_EXCITE:
        steps = results[network]["variants"]
        for before, step in itertools.pairwise(STEPS[1:]):
            # Of speed-ups, which compare calls of the same round: medians are of fast and slow minutes.
            gain = steps[step]["speedup_x"] / steps[before]["speedup_x"]
            figures[f"{network}_gain_by_{step}_x"] = gain
    least = min(figures[f"{network}_ours_speedup_x"] for network in SQUEEZE_AND_EXCITE)
    write_summary(
        name,
        f"int8 is faster than fp32 and than ONNX Runtime's documented int8 on every network, and at least {least:.2f} "
        "times faster than fp32 on those with squeeze-and-excite",
        "python benchmarks/quantization-rewrites/run.py",
        figures,
        {
            "faster_than_fp32_on_every_network": all(
                figures[f"{network}_ours_speedup_low_x"] > 1 for network in NETWORKS
            ),
            "faster_than_documented_on_every_network": all(
                figures[f"{network}_ours_speedup_low_x"] > figures[f"{network}_documented_speedup_high_x"]
                for network in NETWORKS
            ),
            "at_least_1_3_times_fp32_with_squeeze_and_excite": all(
                figures[f"{network}_ours_speedup_low_x"] >= 1.3 for network in SQUEEZE_AND_EXCITE
            ),
        },
        this_machine(),
    )


if __name__ == "__main__":
    main()
