"""Why int8 activations are unsigned on x86-64: U8S8 and S8S8 against float32, timed in turns.

Random weights: only latency is measured. Usage: python benchmarks/int8-activations/run.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from onnxdistill.device.bench import bench
from onnxdistill.networks import build_network
from onnxdistill.recipe import ExportTable, QuantizeTable
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import quantize

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

NETWORKS = {
    "resnet20": ("cifar-resnet20", 32),
    "resnet56": ("cifar-resnet56", 32),
    "resnet18": ("torchvision:resnet18", 224),
}
RUNS = 300


def main() -> None:
    figures: dict[str, float] = {}
    raw = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (network, size) in NETWORKS.items():
            inputs = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
            source = Path(scratch) / f"{name}-float32.onnx"
            export(build_network(network, 10, 0), inputs, source, ExportTable())
            files = {"float32": source}
            for activations in ("uint8", "int8"):
                files[activations] = source.with_name(f"{name}-{activations}.onnx")
                table = QuantizeTable.model_validate({"activations": activations})
                quantize(source, files[activations], [{"input": inputs.numpy()}], table)
            result = bench(files, threads=1, batch=1, runs=RUNS, seed=0)
            for activations, label in (("uint8", "u8s8"), ("int8", "s8s8")):
                ratio = result[activations].speedup
                figures |= {
                    f"{name}_{label}_speedup_x": ratio.value,
                    f"{name}_{label}_speedup_low_x": ratio.low,
                    f"{name}_{label}_speedup_high_x": ratio.high,
                }
            raw[name] = {case.name: case.times_ms for case in result.cases}
    folder = Path(__file__).parent
    (folder / "times_ms.json").write_text(json.dumps(raw) + "\n")
    write_summary(
        folder.name,
        "int8 with unsigned activations (U8S8) is faster than fp32 and than signed ones (S8S8) on every network; "
        "signed ones are slower than fp32 on the CIFAR ResNets",
        "python benchmarks/int8-activations/run.py",
        figures,
        {
            "s8s8_slower_than_fp32_on_cifar_resnets": all(
                figures[f"{name}_s8s8_speedup_high_x"] < 1 for name in ("resnet20", "resnet56")
            ),
            "u8s8_faster_than_fp32_on_every_network": all(
                figures[f"{name}_u8s8_speedup_low_x"] > 1 for name in NETWORKS
            ),
            "u8s8_faster_than_s8s8_on_every_network": all(
                figures[f"{name}_u8s8_speedup_low_x"] > figures[f"{name}_s8s8_speedup_high_x"] for name in NETWORKS
            ),
        },
        this_machine(),
    )


if __name__ == "__main__":
    main()
