"""Students of ResNet-56 within the same measured milliseconds, made four ways and fine-tuned alike.

Each way makes the largest network whose int8 file keeps to the budget, timed in ONNX Runtime with one thread in turns
with the teacher's float32 file:

- `plan`: what `compress --speedup` does, from latencies alone;
- `uniform L1`: the same share of every channel group goes, by the size of weights (Li et al. 2017);
- `Torch-Pruning`: channels inside the residual blocks go globally, by Taylor scores that are renewed in small steps,
  for multiply-adds; it cannot cut the stream between the blocks of these networks, see `before-finetuning`;
- `low rank`: every layer that saves multiply-adds becomes a pair.

Widths are multiples of eight for all of them, where int8 kernels are fastest, and what onnxdistill does to repair a
network after a cut is done for the rivals, too. Then all are distilled for the same epochs with the same data, teacher
and learning rate, and quantized with the ranges of the same images. Accuracy is that of the int8 file on the 10,000
test images, which nothing is decided by. A way that makes no network fast enough is shown with its fastest one.

Results that are there already are kept: a run that was ended goes on.
Usage: pip install torch-pruning; python benchmarks/latency-budgets/run.py --data CIFAR10 --weights FOLDER
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

from onnxdistill.data import load_images
from onnxdistill.device.measuring.compare import compare
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.places import Here
from onnxdistill.device.session import SessionSettings
from onnxdistill.gate import Gate
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.recalibrate import recalibrate_batch_norm
from onnxdistill.journal import Journal
from onnxdistill.networks import build_network
from onnxdistill.recipe import DistillTable, ExportTable, FactorizeTable, PlanTable, PruneTable, QuantizeTable, Recipe
from onnxdistill.stages.distill import distill
from onnxdistill.stages.export import export
from onnxdistill.stages.factorize import factorize
from onnxdistill.stages.plan import Deployed, plan
from onnxdistill.stages.prune import prune
from onnxdistill.stages.quantize import quantize
from onnxdistill.stages.verify import verify
from onnxdistill.tasks.classification import Classification

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.plots import INK, plot
from benchmarks.summaries import this_machine, write_summary

NETWORK = "resnet56"
# Times as fast as the teacher in float32; int8 alone is 2.2 to 2.5 times.
SPEEDUPS = (3.0, 4.0, 5.0, 6.0)
OURS = "plan"
# Shares of the multiply-adds, or of the channels, that rivals are cut to.
SHARES = tuple(round(0.95 - 0.05 * step, 2) for step in range(18))
# A network that is slower by so much is within the budget all the same: two openings differ by this.
TOLERANCE = 1.02
FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)
COLORS = {"plan": "#1f9d6b", "uniform L1": "#b7791f", "Torch-Pruning": "#5b8def", "low rank": "#8b949e"}


class Bench:
    """The teacher, its data, and how networks are timed, trained and scored."""

    def __init__(self, data: Path, weights: Path, epochs: int, folder: Path, journal: Journal) -> None:
        self.teacher = build_network(f"cifar-{NETWORK}", 10, 0).eval()
        self.teacher.load_state_dict(torch.load(weights / f"{NETWORK}-cifar10-jpeg.pt", weights_only=True))
        recipe = {
            "name": "latency-budgets",
            "data": {"source": "folder", "root": str(data), "image_size": 32},
            "teacher": {"network": f"cifar-{NETWORK}"},
            "quantize": {},
            "bench": {"seconds": 1.0},
        }
        self.recipe = Recipe.model_validate(recipe)
        self.task = Classification(load_images(self.recipe.data, 0))
        self.table = DistillTable(
            epochs=epochs, learning_rate=0.02, schedule="one_cycle", crop_pad=4, flip=True, views=epochs
        )
        self.folder = folder
        self.journal = journal
        self.reference = self.exported(self.teacher, "teacher.onnx")
        self.gate = Gate(self.recipe, Here(), self.task, folder, journal)
        self.teacher_ms = self.gate.latency_ms(self.reference)

    def exported(self, network: nn.Module, name: str) -> Path:
        names: dict[str, Any] = {"input_name": self.task.input_name, "output_name": self.task.output_name}
        export(network.eval(), self.task.example_input(3), self.folder / name, ExportTable(), **names)
        return self.folder / name

    def deployed(self, network: nn.Module) -> Deployed:
        return self.gate.deployed(network, self.reference)

    def within(self, budget_ms: float, networks: Networks) -> tuple[nn.Module, float]:
        """The largest network within the budget and its latency, by bisection; or the last one."""
        low, high = 0, len(SHARES) - 1
        while low < high:
            middle = (low + high) // 2
            fits = networks.latency_ms(middle) <= TOLERANCE * budget_ms
            low, high = (low, middle) if fits else (middle + 1, high)
        return networks.network(low), networks.latency_ms(low)

    def row(self, network: nn.Module) -> dict[str, Any]:
        """Trains a network, and scores and times what would ship."""
        started = time.monotonic()
        trained = distill(network, [self.teacher], self.task, self.table, 0).network
        exported, path = self.exported(trained, "student.onnx"), self.folder / "student-int8.onnx"
        batches = ({self.task.input_name: batch.inputs.numpy()} for batch in self.task.calibration_batches(32))
        quantize(exported, path, batches, QuantizeTable())
        ratio = compare(self.reference, path, SessionSettings(), until="close")
        example = self.task.example_input(1)
        return {
            "speedup": {"value": ratio.value, "low": ratio.low, "high": ratio.high},
            "macs_x": count_macs(self.teacher, example) / count_macs(network, example),
            "before_training_percent": self.score(self.exported(network, "before.onnx")),
            "top1_percent": self.score(path),
            "float32_percent": self.score(exported),
            "seconds": round(time.monotonic() - started),
        }

    def score(self, path: Path) -> float:
        return verify(path, self.task, SessionSettings()).value


class Networks:
    """The networks that one way makes, from large to small, each made and timed when it is asked for."""

    def __init__(self, bench: Bench, make: Callable[[int], nn.Module]) -> None:
        self._bench, self._make = bench, make
        self._networks: dict[int, nn.Module] = {}
        self._latencies_ms: dict[int, float] = {}

    def network(self, place: int) -> nn.Module:
        if place not in self._networks:
            self._networks[place] = self._make(place)
        return self._networks[place]

    def latency_ms(self, place: int) -> float:
        if place not in self._latencies_ms:
            self._latencies_ms[place] = self._bench.deployed(self.network(place)).latency_ms
        return self._latencies_ms[place]


def uniform_l1(bench: Bench, place: int) -> nn.Module:
    return prune(bench.teacher, bench.task, PruneTable(ratio=1 - SHARES[place], criterion="l1")).network


def low_rank(bench: Bench, place: int) -> nn.Module:
    """With every pair that saves multiply-adds: whether that is faster is what is measured here."""
    table = FactorizeTable(macs_ratio=SHARES[place])
    return factorize(bench.teacher, bench.task, table, 0, lambda *_: Estimate(2.0, 2.0, 2.0)).network


class TorchPruning:
    """Its networks at all shares, from one pass of small steps."""

    def __init__(self, bench: Bench) -> None:
        self._steps = self._pruned(bench.teacher, bench.task)
        self._inputs = [batch.inputs for batch in bench.task.calibration_batches(64)]
        self._made: list[nn.Module] = []

    def __call__(self, place: int) -> nn.Module:
        while len(self._made) <= place:
            self._made.append(recalibrate_batch_norm(next(self._steps), self._inputs))
        return self._made[place]

    @staticmethod
    def _pruned(network: nn.Module, task: Classification) -> Iterator[nn.Module]:
        pruned, example = copy.deepcopy(network), task.example_input(2)
        stream = [layer for name, layer in pruned.named_modules() if name == "conv1" or name.endswith(".conv2")]
        pruner = tp.pruner.BasePruner(
            pruned,
            example,
            importance=tp.importance.GroupTaylorImportance(),
            global_pruning=True,
            pruning_ratio=0.99,
            iterative_steps=100,
            round_to=8,
            ignored_layers=[pruned.linear, *stream],
        )
        whole, steps = count_macs(network, example), 0
        for share in SHARES:
            while count_macs(pruned, example) > share * whole and steps < 100:
                pruned.zero_grad()
                for batch in task.calibration_batches(64):
                    F.cross_entropy(pruned(batch.inputs), batch.targets).backward()
                pruner.step()
                steps += 1
            yield copy.deepcopy(pruned)


class SolverWatch:
    """The longest time that choosing among all plans has taken."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._phase, self._since = "", 0.0

    def __call__(self, phase: str) -> None:
        now = time.monotonic()
        if self._phase == "solving":
            self.longest_s = max(self.longest_s, now - self._since)
        self._phase, self._since = phase, now


def planned(bench: Bench, watch: SolverWatch, budget_ms: float, speedup: float) -> tuple[nn.Module, float]:
    result = plan(
        bench.teacher,
        bench.task,
        PlanTable(speedup=speedup),
        budget_ms,
        bench.deployed,
        Here(),
        SessionSettings(),
        remember=bench.journal.decision,
        on_progress=watch,
    )
    return result.network, result.latency_ms


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of NAME-cifar10-jpeg.pt.")
@click.option("--epochs", default=2, show_default=True, help="Of distillation for every student.")
def main(data: Path, weights: Path, epochs: int) -> None:
    """Makes results.json, and summary.json with front.svg when all of it is there."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if results.setdefault("epochs", epochs) != epochs:
        raise click.UsageError(f"{RESULTS} holds students of {results['epochs']} epochs.")
    with tempfile.TemporaryDirectory() as scratch, Journal(Path(scratch) / "run") as journal:
        bench = Bench(data, weights, epochs, Path(scratch), journal)
        results.setdefault("teacher_percent", bench.score(bench.reference))
        rivals = {
            "uniform L1": Networks(bench, partial(uniform_l1, bench)),
            "Torch-Pruning": Networks(bench, TorchPruning(bench)),
            "low rank": Networks(bench, partial(low_rank, bench)),
        }
        watch = SolverWatch()
        for speedup in SPEEDUPS:
            budget_ms = bench.teacher_ms / speedup
            rows = results.setdefault("speedups", {}).setdefault(f"{speedup:g}", {})
            makers = {OURS: partial(planned, bench, watch, budget_ms, speedup)}
            makers |= {label: partial(bench.within, budget_ms, networks) for label, networks in rivals.items()}
            for label, make in makers.items():
                if label in rows:
                    continue
                network, latency_ms = make()
                reached = latency_ms <= TOLERANCE * budget_ms
                # What is too slow is not trained: it has lost at this budget.
                rows[label] = {"reached": reached, "planned_speedup_x": bench.teacher_ms / latency_ms}
                rows[label] |= bench.row(network) if reached else {}
                results["solver_s"] = max(results.get("solver_s", 0.0), round(watch.longest_s, 2))
                print(f"{speedup:g}x {label}: {rows[label]}", flush=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    summarise(results)


def summarise(results: dict[str, Any]) -> None:
    figures: dict[str, float] = {
        f"{NETWORK}_float32_percent": results["teacher_percent"],
        "longest_choice_of_a_plan_s": results["solver_s"],
    }
    ahead, kept = [], []
    for speedup, rows in results["speedups"].items():
        key = f"at_{speedup.replace('.', '_')}_times_as_fast"
        for label, row in rows.items():
            name = label.lower().replace(" ", "_").replace("-", "_")
            if row["reached"]:
                figures[f"{key}_{name}_percent"] = row["top1_percent"]
                figures[f"{key}_{name}_speedup_x"] = row["speedup"]["value"]
                figures[f"{key}_{name}_speedup_low_x"] = row["speedup"]["low"]
                figures[f"{key}_{name}_speedup_high_x"] = row["speedup"]["high"]
            else:
                figures[f"{key}_{name}_reaches_only_x"] = row["planned_speedup_x"]
        others = [row["top1_percent"] for label, row in rows.items() if label != OURS and row["reached"]]
        ours = rows[OURS]
        ahead.append(ours["reached"] and all(ours["top1_percent"] > other for other in others))
        kept.append(ours["reached"] and ours["speedup"]["value"] * TOLERANCE >= float(speedup))
    draw(results)
    write_summary(
        FOLDER.name,
        f"ResNet-56 in int8 within the same measured milliseconds, {results['epochs']} epochs of distillation each: "
        "planned from latencies, against uniform L1, Torch-Pruning for multiply-adds, and low rank",
        "python benchmarks/latency-budgets/run.py --data CIFAR10 --weights FOLDER",
        figures,
        {
            "ahead_of_all_at_every_budget": all(ahead),
            "every_budget_kept": all(kept),
            "plans_chosen_within_10_s": results["solver_s"] <= 10,
        },
        this_machine(),
    )


def draw(results: dict[str, Any]) -> None:
    """Accuracy against measured speed, a line for every way."""
    with plot(FOLDER / "front.svg") as axes:
        for label, color in COLORS.items():
            rows = [rows[label] for rows in results["speedups"].values() if rows[label]["reached"]]
            if rows:
                places = [(row["speedup"]["value"], row["top1_percent"]) for row in rows]
                axes.plot(*zip(*places, strict=True), "o-", color=color, label=label, lw=2.2 if label == OURS else 1.3)
        axes.axhline(results["teacher_percent"], color=INK, lw=1)
        axes.annotate("teacher, float32", (0, results["teacher_percent"]), xycoords=("axes fraction", "data"),
                      xytext=(4, -14), textcoords="offset points", color=INK)  # fmt: skip
        axes.set_xlabel("times as fast as the teacher in float32, measured")
        axes.set_ylabel("top-1 on the test images, %")
        axes.legend()


if __name__ == "__main__":
    main()
