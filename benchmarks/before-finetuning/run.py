"""Top-1 of CIFAR-10 ResNets pruned to half of their multiply-adds, before any fine-tuning, against Torch-Pruning.

The same teacher, the same 512 calibration images, and the multiply-adds nearest below one half for each method;
Torch-Pruning prunes in small steps with its scores renewed in every step, within layers (its default) and globally.
Each result is also shown with batch norms recalibrated on the same images. Accuracy is that of the exported file in
ONNX Runtime on the 10,000 test images, which nothing was decided by: what onnxdistill decides, it decides on
validation images. Torch-Pruning 1.6.1 keeps the stream between the blocks whole: with its defaults the cut ResNets do
not run ("mat1 and mat2 shapes cannot be multiplied"), since it does not see that the zero-padded shortcuts have to
follow. onnxdistill is shown with and without that freedom.

Results that are there already are kept: a run that was ended goes on.
Usage: pip install torch-pruning; python benchmarks/before-finetuning/run.py --data CIFAR10 --weights FOLDER
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path

import click
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

from onnxdistill.data import load_images
from onnxdistill.device.session import SessionSettings
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.recalibrate import recalibrate_batch_norm
from onnxdistill.networks import build_network
from onnxdistill.recipe import DataTable, ExportTable, PruneTable
from onnxdistill.stages.export import export
from onnxdistill.stages.prune import prune
from onnxdistill.stages.verify import verify
from onnxdistill.tasks.classification import Classification

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

MACS = 0.5
NETWORKS = ("resnet20", "resnet56")
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


def ours(network: nn.Module, task: Classification, inside: bool) -> nn.Module:
    """`inside`: only channels inside the residual blocks, as Torch-Pruning can on these networks."""
    skip = ["conv1", "layer?.0.conv2"] if inside else []
    return prune(network, task, PruneTable(macs_ratio=MACS, multiple_of=1, minimum=1, skip=skip)).network


def torch_pruning(network: nn.Module, task: Classification, score: str, everywhere: bool) -> nn.Module:
    """Channels inside the residual blocks: cuts of the stream break the zero-padded shortcuts of these networks."""
    pruned = copy.deepcopy(network)
    example = task.example_input(2)
    kinds = {"taylor": tp.importance.GroupTaylorImportance, "magnitude": tp.importance.GroupMagnitudeImportance}
    stream = [layer for name, layer in pruned.named_modules() if name == "conv1" or name.endswith(".conv2")]
    pruner = tp.pruner.BasePruner(
        pruned,
        example,
        importance=kinds[score](),
        global_pruning=everywhere,
        pruning_ratio=0.9,
        iterative_steps=100,
        ignored_layers=[pruned.linear, *stream],
    )
    whole = count_macs(network, example)
    while count_macs(pruned, example) > MACS * whole:
        if score == "taylor":
            pruned.zero_grad()
            for batch in task.calibration_batches(64):
                F.cross_entropy(pruned(batch.inputs), batch.targets).backward()
        pruner.step()
    return pruned


def top1(network: nn.Module, task: Classification, scratch: Path) -> float:
    path = scratch / "network.onnx"
    names = {"input_name": task.input_name, "output_name": task.output_name}
    export(network.eval(), task.example_input(3), path, ExportTable(), **names)
    return verify(path, task, SessionSettings()).value


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="Image folder of CIFAR-10.")
@click.option(
    "--weights", type=click.Path(exists=True, path_type=Path), required=True, help="Holds NAME-cifar10-jpeg.pt."
)
def main(data: Path, weights: Path) -> None:
    """Makes results.json and summary.json."""
    table = DataTable.model_validate({"source": "folder", "root": str(data), "image_size": 32})
    task = Classification(load_images(table, 0))
    inputs = [batch.inputs for batch in task.calibration_batches(64)]
    folder = Path(__file__).parent
    place = folder / "results.json"
    results: dict[str, dict[str, dict[str, float]]] = json.loads(place.read_text()) if place.is_file() else {}
    for name in NETWORKS:
        network = build_network(f"cifar-{name}", 10, 0)
        network.load_state_dict(torch.load(weights / f"{name}-cifar10-jpeg.pt", weights_only=True))
        methods = {
            "onnxdistill": lambda n=network: ours(n, task, inside=False),
            "onnxdistill, inside the blocks": lambda n=network: ours(n, task, inside=True),
        }
        for score in ("magnitude", "taylor"):
            for everywhere in (False, True):
                label = f"torch-pruning {score}, {'global' if everywhere else 'within layers'}"
                methods[label] = lambda n=network, s=score, e=everywhere: torch_pruning(n, task, s, e)
        rows = results.setdefault(name, {})
        with tempfile.TemporaryDirectory() as scratch:
            for label, method in methods.items():
                if label in rows:
                    continue
                pruned = method()
                rows[label] = {
                    "macs_left": count_macs(pruned, inputs[0][:1]) / count_macs(network, inputs[0][:1]),
                    "top1_percent": top1(pruned, task, Path(scratch)),
                    "top1_recalibrated_percent": top1(recalibrate_batch_norm(pruned, inputs), task, Path(scratch)),
                }
                print(name, label, rows[label], flush=True)
                place.write_text(json.dumps(results, indent=1) + "\n")
    summarise(folder.name, results)


def summarise(folder: str, results: dict[str, dict[str, dict[str, float]]]) -> None:
    figures: dict[str, float] = {}
    holds: dict[str, bool] = {}
    for name, methods in results.items():
        ours = methods["onnxdistill"]["top1_percent"]
        others = [row for label, row in methods.items() if label.startswith("torch")]
        plain, recalibrated = (max(row[key] for row in others) for key in ("top1_percent", "top1_recalibrated_percent"))
        figures[f"{name}_onnxdistill_percent"] = ours
        figures[f"{name}_best_torch_pruning_percent"] = plain
        figures[f"{name}_best_torch_pruning_recalibrated_percent"] = recalibrated
        figures[f"{name}_ahead_points"] = ours - plain
        figures[f"{name}_ahead_of_recalibrated_points"] = ours - recalibrated
        holds[f"{name}_ahead_by_10_points"] = ours - plain >= 10
        holds[f"{name}_ahead_by_10_points_even_of_recalibrated_ones"] = ours - recalibrated >= 10
    write_summary(
        folder,
        "at half of the multiply-adds and before any fine-tuning, ResNet-20 keeps "
        f"{figures['resnet20_onnxdistill_percent']:.1f} % top-1 on the CIFAR-10 test images and ResNet-56 "
        f"{figures['resnet56_onnxdistill_percent']:.1f} %",
        "python benchmarks/before-finetuning/run.py --data CIFAR10 --weights WEIGHTS",
        figures,
        holds,
        this_machine(),
    )


if __name__ == "__main__":
    main()
