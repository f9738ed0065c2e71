"""What exports, prunes: channel groups of 38 networks, cut in half, against Torch-Pruning with its own defaults.

Random weights: this is about structure. Every network and tool runs in a process of its own, with a time limit.
Usage: pip install torch-pruning timm; python benchmarks/coverage/run.py [--only NAME ...]
"""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from onnxdistill.graph.channels import ChannelAnalysis, analyse_channels
from onnxdistill.graph.cores import Core, core_of
from onnxdistill.graph.cost import count_macs, parameter_count
from onnxdistill.graph.silence import silent_outputs
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import weight_costs
from onnxdistill.networks import build_network

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

CLASSIFIERS = """resnet18 resnet50 resnext50_32x4d wide_resnet50_2 vgg11 vgg16_bn alexnet mobilenet_v2
mobilenet_v3_small mobilenet_v3_large efficientnet_b0 efficientnet_v2_s densenet121 convnext_tiny regnet_x_400mf
regnet_y_400mf shufflenet_v2_x1_0 squeezenet1_1 googlenet inception_v3 mnasnet1_0 swin_t swin_v2_t vit_b_16
maxvit_t""".split()
DENSE = """deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large
fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_resnet50_fpn retinanet_resnet50_fpn
ssdlite320_mobilenet_v3_large""".split()
BUILT_IN = ["cifar-resnet20", "cifar-resnet56"]
TIMM = ["resnet26d", "mobilenetv3_small_100", "efficientnet_lite0"]
SIZES = {"inception_v3": 299, "vit_b_16": 224, "maxvit_t": 224, "swin_t": 224, "swin_v2_t": 224, "cifar": 32}
TOOLS = ("onnxdistill", "torch-pruning")
TIME_LIMIT_S = 240


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name in BUILT_IN:
        return build_network(name, 10, 0), torch.randn(2, 3, 32, 32)
    if name in TIMM:
        return timm.create_model(name, pretrained=False).eval(), torch.randn(2, 3, 128, 128)
    extra: dict[str, Any] = {"weights_backbone": None} if name in DENSE else {}
    if name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": True, "init_weights": False}
    network = torchvision.models.get_model(name, weights=None, **extra).eval()
    size = SIZES.get(name, 320 if "rcnn" in name or "ssd" in name or "retina" in name else 128)
    return network, torch.randn(2, 3, size, size)


def examine(name: str, tool: str) -> dict[str, Any]:
    """Cuts one network with one tool and says what came out."""
    warnings.simplefilter("ignore")
    network, example = build(name)
    core = core_of(network)
    row: dict[str, Any] = {"macs": count_macs(core, example) // 2, "parameters": parameter_count(network)}
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.perf_counter()
    if tool == "onnxdistill":
        analysis = analyse_channels(network, example)
        row["analysis_s"] = time.perf_counter() - started
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes
        row["memory_over_model"] = grown / sum(p.nbytes for p in network.parameters())
        row["groups"], row["free_groups"] = len(analysis.groups), len(analysis.free)
        row |= shares(network, analysis, example)
        row["masked_difference"] = masked_difference(network, analysis, example)
        started += time.perf_counter() - started - row["analysis_s"]
        kept = {group.name: np.arange(-(-group.size // 2)) for group in analysis.free if group.kind == "channels"}
        smaller = remove_channels(network, analysis, kept, example)
    else:
        smaller = torch_pruning(network, core, example)
    row["seconds"] = time.perf_counter() - started
    return row | outcome(smaller, core, example, row["macs"])


def masked_difference(network: nn.Module, analysis: ChannelAnalysis, example: Tensor) -> float:
    """Random channel sets, in float64: the cut network against the whole one with the others silent, relative."""
    exact, inputs = copy.deepcopy(network).double(), example.double()
    rng = np.random.default_rng(0)
    kept = {g.name: np.sort(rng.permutation(g.size)[: rng.integers(1, g.size + 1)]) for g in analysis.free}
    expected = tree_leaves(silent_outputs(exact, analysis, kept, inputs))
    smaller = remove_channels(exact, analysis, kept, inputs)
    with torch.inference_mode():
        actual = tree_leaves(core_of(smaller)(inputs))
    # A head that starts at zero gives zero either way.
    return max(
        float((a - e).abs().max()) / max(1e-12, float(e.abs().max())) for e, a in zip(expected, actual, strict=True)
    )


def outcome(smaller: nn.Module, core: Core, example: Tensor, macs: int) -> dict[str, Any]:
    cut = core_of(smaller)
    with torch.no_grad():
        expected = [tuple(output.shape) for output in tree_leaves(core(example))]
        actual = [tuple(output.shape) for output in tree_leaves(cut.eval()(example))]
    result: dict[str, Any] = {"forward_ok": actual == expected, "macs_left": count_macs(cut, example) / 2 / macs}
    result["train_ok"] = attempt(lambda: train_step(cut.train(), example))
    cut.eval()
    parity: list[float] = []
    failure = attempt(lambda: parity.append(onnx_difference(cut, example)))
    result["onnx_difference"] = parity[0] if parity else failure
    return result


def attempt(action: Callable[[], Any]) -> bool | str:
    try:
        action()
    except Exception as error:  # noqa: BLE001  # whatever a network or a tool raises is what the table shows
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return True


def train_step(core: nn.Module, example: Tensor) -> None:
    outputs = tree_leaves(core(example))
    sum(output.float().sum() for output in outputs).backward()


def onnx_difference(core: nn.Module, example: Tensor) -> float:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(core, (example,), path, dynamo=True, external_data=False, verbose=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        actual = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    with torch.no_grad():
        expected = tree_leaves(core(example))
    return max(float((one - torch.from_numpy(other)).abs().max()) for one, other in zip(expected, actual, strict=True))


def shares(network: nn.Module, analysis: ChannelAnalysis, example: Tensor) -> dict[str, float]:
    """Of all weights and multiply-adds, those in a slice that can go."""
    free: dict[tuple[str, int], int] = {}
    for group in analysis.free:
        if group.kind == "channels":
            for member in group.members:
                key = (member.tensor, member.dim)
                free[key] = free.get(key, 0) + sum(len(indices) for indices in member.indices)
    parameters = dict(network.named_parameters())

    def share(name: str) -> float:
        stays = 1.0
        for dim, size in enumerate(parameters[name].shape):
            stays *= 1 - free.get((name, dim), 0) / size
        return 1 - stays

    total = sum(tensor.numel() for tensor in parameters.values())
    costs = weight_costs(network, analysis, example)
    macs = sum(cost.macs({}) for cost in costs)
    covered = sum(cost.macs({}) * share(cost.name) for cost in costs)
    return {
        "parameters_prunable": sum(share(name) * tensor.numel() for name, tensor in parameters.items()) / total,
        "macs_prunable": covered / macs,
    }


def torch_pruning(network: nn.Module, core: Core, example: Tensor) -> nn.Module:
    """As its documentation shows it: group magnitude, half of the channels, layers that give outputs ignored."""
    import torch_pruning as tp

    classes = {output.shape[1] for output in tree_leaves(core(example)) if output.ndim > 1}
    ignored = [
        layer
        for layer in network.modules()
        if (isinstance(layer, nn.Linear) and layer.out_features in classes)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels in classes and layer.out_channels < 1000)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == 1000)
    ]
    pruner = tp.pruner.BasePruner(
        core,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        output_transform=lambda outputs: sum(output.sum() for output in tree_leaves(outputs)),
    )
    pruner.step()
    return network


def in_a_process(name: str, tool: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, tool]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failure": f"no result within {TIME_LIMIT_S} s"}
    if process.returncode:
        lines = [line for line in process.stderr.strip().splitlines() if line.strip()]
        return {"failure": lines[-1][:200] if lines else f"exit code {process.returncode}"}
    result: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return result


def table(results: dict[str, Any]) -> str:
    """A row a network, both tools side by side."""
    lines = [
        "Half of the channels cut; random weights. Prunable: share in slices that can go. Parity: largest absolute",
        "difference between PyTorch and ONNX Runtime. Masked: largest difference from the whole network with random",
        "channel sets silent, relative, in float64. A failure stands where its result would be.\n",
        "| network | parameters prunable | MACs prunable | MACs left | forward | train step | parity | masked "
        "| analysis s | memory / model | Torch-Pruning: MACs left | forward | train step | parity | s |",
        "|---|--:|--:|--:|---|---|--:|--:|--:|--:|--:|---|---|--:|--:|",
    ]
    for name, row in results.items():
        own, other = row["onnxdistill"], row["torch-pruning"]
        cells = [
            number(own, "parameters_prunable", "{:.0%}"),
            number(own, "macs_prunable", "{:.0%}"),
            number(own, "macs_left", "{:.3f}"),
            verdict(own.get("forward_ok")),
            verdict(own.get("train_ok")),
            number(own, "onnx_difference", "{:.1g}"),
            number(own, "masked_difference", "{:.1g}"),
            number(own, "analysis_s", "{:.1f}"),
            number(own, "memory_over_model", "{:.1f}"),
            number(other, "macs_left", "{:.3f}"),
            verdict(other.get("forward_ok")),
            verdict(other.get("train_ok")),
            number(other, "onnx_difference", "{:.1g}"),
            number(other, "seconds", "{:.1f}"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def number(row: dict[str, Any], key: str, form: str) -> str:
    value = row.get(key, row.get("failure", "–"))
    return form.format(value) if isinstance(value, int | float) else str(value).replace("|", "/")


def verdict(value: Any) -> str:
    return "✓" if value is True else "–" if value is None else "✗" if value is False else str(value).replace("|", "/")


def works(row: dict[str, Any]) -> bool:
    difference = row.get("onnx_difference")
    return bool(
        row.get("forward_ok")
        and row.get("train_ok") is True
        and isinstance(difference, float)
        and difference < 1e-3
        and row.get("masked_difference", 0.0) < 1e-5
    )


@click.command()
@click.option("--one", nargs=2, help="A network and a tool, in this process.")
@click.option("--only", multiple=True, help="Only these networks; the others keep their results.")
def main(one: tuple[str, str] | None, only: tuple[str, ...]) -> None:
    """Makes results.json and summary.json."""
    if one:
        print(json.dumps(examine(*one)))
        return
    folder = Path(__file__).parent
    place = folder / "results.json"
    results: dict[str, Any] = json.loads(place.read_text()) if only and place.is_file() else {}
    for name in [*CLASSIFIERS, *DENSE, *BUILT_IN, *TIMM]:
        if not only or name in only:
            results[name] = {tool: in_a_process(name, tool) for tool in TOOLS}
            print(name, json.dumps(results[name]), flush=True)
            place.write_text(json.dumps(results, indent=1) + "\n")
            (folder / "table.md").write_text(table(results), encoding="utf-8")
    summarise(folder.name, results)


def summarise(name: str, results: dict[str, Any]) -> None:
    ours = [row["onnxdistill"] for row in results.values()]
    theirs = [row["torch-pruning"] for row in results.values()]
    largest = max((row for row in ours if "analysis_s" in row), key=lambda row: int(row["parameters"]))
    figures = {
        "networks_count": float(len(results)),
        "onnxdistill_working_count": float(sum(map(works, ours))),
        "torch_pruning_working_count": float(sum(map(works, theirs))),
        "largest_analysis_s": largest["analysis_s"],
        "largest_memory_over_model_x": largest["memory_over_model"],
        "slowest_analysis_s": max(row.get("analysis_s", 0.0) for row in ours),
    }
    write_summary(
        name,
        f"{figures['onnxdistill_working_count']:.0f} of {len(results)} networks are cut in half, run, train and export "
        f"without hand edits; Torch-Pruning with its defaults: {figures['torch_pruning_working_count']:.0f}",
        "python benchmarks/coverage/run.py",
        figures,
        {
            "every_network_works": all(map(works, ours)),
            "analysis_of_the_largest_under_30_s": largest["analysis_s"] < 30,
            "memory_of_the_largest_within_3_times_the_model": largest["memory_over_model"] <= 3,
        },
        this_machine(),
    )


if __name__ == "__main__":
    main()
