"""Students of ResNet-56 within the same measured milliseconds, made four ways and fine-tuned alike.

Each way makes a network that keeps to the budget in int8, or in float32 where that is faster, timed in ONNX Runtime
with one thread in turns with the teacher's float32 file. All are held to a little less than the budget, as `compress`
does: what is measured again in the end differs.

- `plan`: what `compress --speedup` does, from latencies alone;
- `uniform L1`: the same share of every channel group goes, by the size of weights (Li et al. 2017), to multiples of
  eight or of four, whichever scores better on validation images at that budget;
- `Torch-Pruning`: channels inside the residual blocks go globally for multiply-adds, in a hundred small steps with
  renewed scores, by magnitude or by Taylor scores, whichever scores better on validation images at that budget; it
  cannot cut the stream between the blocks of these networks, see `before-finetuning`;
- `low rank`: layers become pairs for multiply-adds, each that saves some.

Of a rival's networks, from large to small, the largest that keeps to the budget is taken; one that has none is shown
with its fastest. Widths are multiples of eight otherwise, where int8 kernels are fastest, and what `prune` does to
repair a network after a cut is done for the rivals, too. Then all are distilled for the same epochs with the same
images, teacher and learning rate, and quantized, where that is faster, with the ranges of the same images. That is
short, so that it can be done on two cores: what counts is the order of the ways, not how far each gets. Accuracy is
that of the file that would ship on the 10,000 test images, which nothing is decided by. In the end, all these files are
timed in turns in one run.

Results that are there already are kept, with their files in `students/`: a run that was ended goes on, on a machine of
the same kind.
Usage: pip install torch-pruning; python benchmarks/latency-budgets/run.py --data CIFAR10 --weights FOLDER
"""

from __future__ import annotations

import base64
import copy
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from onnxdistill.data import load_images
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.places import Here
from onnxdistill.device.session import SessionSettings
from onnxdistill.gate import Gate
from onnxdistill.graph.cost import count_macs
from onnxdistill.journal import Journal
from onnxdistill.networks import build_network
from onnxdistill.pipeline import PLAN_MARGIN
from onnxdistill.recipe import DistillTable, ExportTable, FactorizeTable, PlanTable, PruneTable, QuantizeTable, Recipe
from onnxdistill.stages.distill import distill
from onnxdistill.stages.export import export
from onnxdistill.stages.factorize import factorize
from onnxdistill.stages.plan import Deployed, plan
from onnxdistill.stages.prune import prune
from onnxdistill.stages.quantize import quantize
from onnxdistill.stages.verify import verify
from onnxdistill.tasks.base import Score, paired_interval
from onnxdistill.tasks.classification import Classification
from onnxdistill.training.repaired import best_repaired
from onnxdistill.training.validation import validation_score

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.plots import INK, plot
from benchmarks.summaries import this_machine, write_summary

NETWORK = "resnet56"
# Times as fast as the teacher in float32. int8 alone is 1.5 to 1.8 times as fast without VNNI, and 2.2 to 2.5 times
# with it: there, ask for more.
SPEEDUPS = (2.0, 2.5, 3.0, 4.0)
OURS = "plan"
# Shares of the multiply-adds, or of the channels, that rivals are cut to.
SHARES = tuple(round(0.94 - 0.02 * step, 2) for step in range(44))
FEW_SHARES = SHARES[::6]
# Two measurements of the same file differ by so much: what kept to its budget before the training still does.
TOLERANCE = 1.02
MULTIPLE, IMAGES = 8, 10_000
# Of the last measurement, for each file.
SECONDS_EACH = 15
FOLDER = Path(__file__).parent
RESULTS, STUDENTS = FOLDER / "results.json", FOLDER / "students"
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)
COLORS = {"plan": "#1f9d6b", "uniform L1": "#b7791f", "Torch-Pruning": "#5b8def", "low rank": "#8b949e"}


class Bench:
    """The teacher, its data, and how networks are timed, trained and scored."""

    def __init__(self, data: Path, weights: Path, epochs: int, samples: int, folder: Path, journal: Journal) -> None:
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
        splits = load_images(self.recipe.data, 0)
        self.task = Classification(splits)
        few = splits.train.subset(np.random.default_rng(0).permutation(len(splits.train))[:samples])
        self.training = Classification(replace(splits, train=few))
        self.table = DistillTable(
            epochs=epochs, learning_rate=0.02, schedule="one_cycle", crop_pad=4, flip=True, views=epochs
        )
        self.folder = folder
        self.journal = journal
        self.reference = self.exported(self.teacher, "teacher.onnx")
        self.gate = Gate(self.recipe, Here(), self.task, folder, journal)
        self.teacher_ms = self.gate.latency_ms(self.reference)
        self.int8_speedup = self.teacher_ms / self.deployed(self.teacher).latency_ms

    def exported(self, network: nn.Module, name: str) -> Path:
        names: dict[str, Any] = {"input_name": self.task.input_name, "output_name": self.task.output_name}
        export(network.eval(), self.task.example_input(3), self.folder / name, ExportTable(), **names)
        return self.folder / name

    def deployed(self, network: nn.Module) -> Deployed:
        return self.gate.deployed(network, self.reference)

    def row(self, network: nn.Module, path: Path) -> dict[str, Any]:
        """Trains a network, and scores what would ship, which goes into a file."""
        started = time.monotonic()
        trained = distill(network, [self.teacher], self.training, self.table, 0).network
        exported = self.exported(trained, "student.onnx")
        form = self.deployed(network)
        is_int8 = form.path != form.exported
        if is_int8:
            batches = ({self.task.input_name: batch.inputs.numpy()} for batch in self.task.calibration_batches(32))
            quantize(exported, path, batches, QuantizeTable())
        else:
            shutil.copyfile(exported, path)
        example = self.task.example_input(1)
        score = self.score(path)
        return {
            "macs_x": count_macs(self.teacher, example) / count_macs(network, example),
            "precision": "int8" if is_int8 else "float32",
            "before_training_percent": self.score(self.exported(network, "before.onnx")).value,
            "float32_percent": self.score(exported).value,
            "top1_percent": score.value,
            "hits": base64.b64encode(np.packbits(score.correct)).decode(),
            "seconds": round(time.monotonic() - started),
        }

    def score(self, path: Path) -> Score:
        return verify(path, self.task, SessionSettings(threads=2))


class Networks:
    """The networks that one way makes, from large to small, each made and timed when it is asked for."""

    def __init__(self, bench: Bench, make: Callable[[float], nn.Module], shares: Sequence[float] = SHARES) -> None:
        self._bench, self._make, self._shares = bench, make, shares
        self._networks: dict[int, nn.Module] = {}
        self._latencies_ms: dict[int, float] = {}

    def within(self, budget_ms: float) -> tuple[nn.Module, float]:
        """The largest network within the budget and its latency, by bisection, since smaller ones are faster."""
        low, high = 0, len(self._shares) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._latency_ms(middle) <= budget_ms else (middle + 1, high)
        return self._network(low), self._latency_ms(low)

    def first_within(self, budget_ms: float) -> tuple[nn.Module, float]:
        """The same where smaller ones need not be faster; the fastest if there is none."""
        places = range(len(self._shares))
        place = next((one for one in places if self._latency_ms(one) <= budget_ms), min(places, key=self._latency_ms))
        return self._network(place), self._latency_ms(place)

    def _network(self, place: int) -> nn.Module:
        if place not in self._networks:
            self._networks[place] = self._make(self._shares[place])
        return self._networks[place]

    def _latency_ms(self, place: int) -> float:
        if place not in self._latencies_ms:
            self._latencies_ms[place] = self._bench.deployed(self._network(place)).latency_ms
        return self._latencies_ms[place]


def uniform_l1(bench: Bench, multiple: int, share: float) -> nn.Module:
    table = PruneTable(ratio=1 - share, criterion="l1", multiple_of=multiple, minimum=multiple)
    return prune(bench.teacher, bench.task, table).network


def low_rank(bench: Bench, share: float) -> nn.Module:
    """With every pair that saves multiply-adds: whether that is faster is what is measured here."""
    table = FactorizeTable(macs_ratio=share)
    return factorize(bench.teacher, bench.task, table, 0, lambda *_: Estimate(2.0, 2.0, 2.0)).network


class TorchPruning:
    """Its networks at all shares, from one pass of small steps."""

    def __init__(self, bench: Bench, score: Callable[[], Any], *, by_gradients: bool) -> None:
        self._bench, self._score, self._by_gradients = bench, score, by_gradients
        self._example = bench.task.example_input(2)
        self._steps = self._pruned()
        self._found: dict[float, nn.Module] = {}

    def __call__(self, share: float) -> nn.Module:
        while share not in self._found:
            known, pruned = next(self._steps)
            self._found[known] = pruned
        return self._repaired(self._rounded(copy.deepcopy(self._found[share])))

    def _pruned(self) -> Iterator[tuple[float, nn.Module]]:
        pruned = copy.deepcopy(self._bench.teacher)
        stream = [layer for name, layer in pruned.named_modules() if name == "conv1" or name.endswith(".conv2")]
        pruner = tp.pruner.BasePruner(
            pruned,
            self._example,
            importance=self._score(),
            global_pruning=True,
            pruning_ratio=0.99,
            iterative_steps=100,
            ignored_layers=[pruned.linear, *stream],
        )
        whole, steps = count_macs(pruned, self._example), 0
        for share in SHARES:
            while count_macs(pruned, self._example) > share * whole and steps < 100:
                self._add_gradients(pruned)
                pruner.step()
                steps += 1
            yield share, copy.deepcopy(pruned)

    def _add_gradients(self, network: nn.Module) -> None:
        if not self._by_gradients:
            return
        network.zero_grad()
        for batch in self._bench.task.calibration_batches(64):
            F.cross_entropy(network(batch.inputs), batch.targets).backward()

    def _rounded(self, pruned: nn.Module) -> nn.Module:
        """With widths that are multiples of eight, or what is left below that."""
        self._add_gradients(pruned)
        graph = tp.DependencyGraph().build_dependency(pruned, self._example)
        for name, layer in list(pruned.named_modules()):
            width = layer.out_channels if name.endswith(".conv1") else 0
            if width > MULTIPLE and width % MULTIPLE:
                scores = self._score()(graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(width))))
                least = scores.argsort()[: width % MULTIPLE].tolist()
                graph.get_pruning_group(layer, tp.prune_conv_out_channels, least).prune()
        pruned.zero_grad()
        return pruned

    def _repaired(self, pruned: nn.Module) -> nn.Module:
        """As `prune` does; its channels are known again by their batch norms, which are as they were."""
        removed: dict[tuple[str, int], NDArray[np.int64]] = {}
        for name, norm in self._bench.teacher.named_modules():
            if name.endswith(".bn1"):
                left = pruned.get_submodule(name).running_mean
                gone = np.flatnonzero(~torch.isin(norm.running_mean, left).numpy())
                assert len(gone) == norm.num_features - len(left)
                block = name.removesuffix(".bn1")
                tensors = [(f"{block}.conv1.weight", 0), (f"{block}.conv2.weight", 1)]
                tensors += [(f"{name}.{part}", 0) for part in ("weight", "bias", "running_mean", "running_var")]
                removed |= dict.fromkeys(tensors if len(gone) else [], gone)
        return best_repaired(self._bench.teacher, pruned.eval(), removed, [], self._bench.task, fit=True)


def best_within(bench: Bench, several: Sequence[Networks], budget_ms: float) -> tuple[nn.Module, float]:
    """Of several ways, that which scores best on validation images within the budget; else the fastest."""
    made = [networks.within(budget_ms) for networks in several]
    fitting = [one for one in made if one[1] <= budget_ms]
    if not fitting:
        return min(made, key=lambda one: one[1])
    return max(fitting, key=lambda one: validation_score(one[0], bench.task))


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
    watch("")
    return result.network, result.latency_ms


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of NAME-cifar10-jpeg.pt.")
@click.option("--epochs", default=2, show_default=True, help="Of distillation for every student.")
@click.option("--samples", default=10_000, show_default=True, help="Training images of every epoch.")
@click.option("--speedup", "speedups", type=float, multiple=True, default=SPEEDUPS, help="A budget; can be repeated.")
def main(data: Path, weights: Path, epochs: int, samples: int, speedups: tuple[float, ...]) -> None:
    """Makes results.json, and summary.json with front.svg when all of it is there."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    training = {"epochs": epochs, "samples": samples}
    if results.setdefault("training", training) != training:
        raise click.UsageError(f"{RESULTS} holds students that were trained with {results['training']}.")
    host = this_machine()
    machine = {key: host[key] for key in ("cpu", "int8_features", "onnxruntime")}
    if results.setdefault("machine", machine) != machine:
        raise click.UsageError(f"{RESULTS} holds times of {results['machine']}, and this is {machine}.")
    STUDENTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, Journal(Path(scratch) / "run") as journal:
        bench = Bench(data, weights, epochs, samples, Path(scratch), journal)
        results.setdefault("teacher_percent", bench.score(bench.reference).value)
        results.setdefault("int8_speedup", bench.int8_speedup)
        torch_pruning = [
            Networks(bench, TorchPruning(bench, tp.importance.GroupMagnitudeImportance, by_gradients=False)),
            Networks(bench, TorchPruning(bench, tp.importance.GroupTaylorImportance, by_gradients=True)),
        ]
        rivals: dict[str, Callable[[float], tuple[nn.Module, float]]] = {
            "uniform L1": partial(
                best_within, bench, [Networks(bench, partial(uniform_l1, bench, each)) for each in (MULTIPLE, 4)]
            ),
            "Torch-Pruning": partial(best_within, bench, torch_pruning),
            "low rank": Networks(bench, partial(low_rank, bench), FEW_SHARES).first_within,
        }
        watch = SolverWatch()
        for speedup in speedups:
            budget_ms = PLAN_MARGIN * bench.teacher_ms / speedup
            rows = results.setdefault("speedups", {}).setdefault(f"{speedup:g}", {})
            makers = {OURS: partial(planned, bench, watch, budget_ms, speedup)}
            makers |= {label: partial(within, budget_ms) for label, within in rivals.items()}
            for label, make in makers.items():
                if label in rows:
                    continue
                network, latency_ms = make()
                reached = latency_ms <= budget_ms
                # What is too slow is not trained: it has lost at this budget.
                rows[label] = {"reached": reached, "planned_speedup_x": bench.teacher_ms / latency_ms}
                rows[label] |= bench.row(network, student(speedup, label)) if reached else {}
                results["solver_s"] = max(results.get("solver_s", 0.0), round(watch.longest_s, 2))
                print(f"{speedup:g}x {label}: {rows[label]}", flush=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        time_all(bench.reference, results)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    summarise(results)


def student(speedup: float, label: str) -> Path:
    """Where the int8 file of a way at a budget is kept."""
    return STUDENTS / f"{speedup:g}x-{label.replace(' ', '-')}.onnx"


def time_all(teacher: Path, results: dict[str, Any]) -> None:
    """Times the teacher's float32 file and all students in turns."""
    timed = {
        f"{speedup}x {label}": (student(float(speedup), label), row)
        for speedup, rows in results["speedups"].items()
        for label, row in rows.items()
        if row["reached"]
    }
    models = {"teacher": teacher, **{name: path for name, (path, _) in timed.items()}}
    found = Here().bench(models, threads=1, seconds=SECONDS_EACH * len(models), seed=0)
    for name, (_, row) in timed.items():
        ratio = found[name].speedup
        row["speedup"] = {"value": ratio.value, "low": ratio.low, "high": ratio.high}


def summarise(results: dict[str, Any]) -> None:
    figures: dict[str, float] = {
        f"{NETWORK}_float32_percent": results["teacher_percent"],
        f"{NETWORK}_in_int8_speedup_x": results["int8_speedup"],
        "longest_choice_of_a_plan_s": results["solver_s"],
    }
    ahead, kept = [], []
    for speedup, rows in sorted(results["speedups"].items(), key=lambda item: float(item[0])):
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
        reached = {label: row for label, row in rows.items() if row["reached"]}
        kept.append(OURS in reached and rows[OURS]["speedup"]["value"] * TOLERANCE >= float(speedup))
        others = {label: row for label, row in reached.items() if label != OURS}
        if OURS in reached and others:
            best = max(others.values(), key=lambda row: row["top1_percent"])
            figures |= ahead_of(rows[OURS], best, key)
        ahead.append(OURS in reached and figures.get(f"{key}_ahead_points", 1.0) > 0)
    draw(results)
    write_summary(
        FOLDER.name,
        f"ResNet-56 as deployed within the same measured milliseconds, {results['training']['epochs']} epochs of "
        f"distillation each on {results['training']['samples']:,} images: "
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


def ahead_of(ours: dict[str, Any], other: dict[str, Any], key: str) -> dict[str, float]:
    """Points ahead on the same images, with the 95 % interval."""
    scores = [Score(row["top1_percent"], (0, 0), IMAGES, correct=unpacked(row["hits"])) for row in (ours, other)]
    points = ours["top1_percent"] - other["top1_percent"]
    interval = paired_interval(*scores, points)
    assert interval is not None, "every sample is right or wrong"
    return dict(zip((f"{key}_ahead{end}_points" for end in ("", "_low", "_high")), (points, *interval), strict=True))


def unpacked(hits: str) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(base64.b64decode(hits), np.uint8), count=IMAGES).astype(bool)


def draw(results: dict[str, Any]) -> None:
    """Accuracy against measured speed, a line for every way."""
    budgets = sorted(results["speedups"].items(), key=lambda item: float(item[0]))
    with plot(FOLDER / "front.svg") as axes:
        for label, color in COLORS.items():
            rows = [rows[label] for _, rows in budgets if rows[label]["reached"]]
            if rows:
                places = [(row["speedup"]["value"], row["top1_percent"]) for row in rows]
                axes.plot(*zip(*places, strict=True), "o-", color=color, label=label, lw=2.2 if label == OURS else 1.3)
        axes.axhline(results["teacher_percent"], color=INK, lw=1)
        axes.annotate("teacher, float32", (0, results["teacher_percent"]), xycoords=("axes fraction", "data"),
                      xytext=(4, 4), textcoords="offset points", color=INK)  # fmt: skip
        axes.margins(y=0.1)  # above the line, where no student is
        axes.set_xlabel("times as fast as the teacher in float32, measured")
        axes.set_ylabel("top-1 on the test images, %")
        axes.legend()


if __name__ == "__main__":
    main()
