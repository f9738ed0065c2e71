"""Stage `prune`: remove whole channels, the least important ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from onnxdistill.graph.channels import ChannelAnalysis, analyse_channels
from onnxdistill.graph.importance import Scores, first_order_taylor, magnitude
from onnxdistill.graph.recalibrate import recalibrate_batch_norm
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import most_important, uniform_widths
from onnxdistill.recipe import PruneTable
from onnxdistill.tasks import Task
from onnxdistill.tasks.base import Objective, TrainingBatch
from onnxdistill.training import module_runner

CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Cut:
    """A channel group before and after; `layers` are those that it runs through."""

    name: str
    channels_before: int
    channels_after: int
    layers: list[str]


@dataclass(frozen=True)
class PruneResult:
    """The smaller network, what was cut, and what the user should know."""

    network: nn.Module
    cuts: list[Cut]
    notes: list[str]


def prune(network: nn.Module, task: Task, table: PruneTable) -> PruneResult:
    """Removes channels; batch norms get new statistics if the validation score says that these are better.

    Args:
        network: Not changed.
        task: Gives calibration samples, and the score on validation.
        table: The recipe's `[prune]`.

    Raises:
        NetworkError: If the network cannot be traced, or does not run with fewer channels.
    """
    example = task.example_input(2)
    analysis = analyse_channels(network, example)
    widths = uniform_widths(analysis, table.ratio, table.multiple_of, table.minimum, table.skip)
    kept = most_important(_importance(network, analysis, task, table), widths)
    smaller = remove_channels(network, analysis, kept, example)
    cuts = [
        Cut(group.name, group.size, widths[group.name], group.layers)
        for group in analysis.groups
        if group.name in widths
    ]
    return PruneResult(_better_statistics(smaller, task), cuts, _notes(analysis, table))


def _importance(network: nn.Module, analysis: ChannelAnalysis, task: Task, table: PruneTable) -> Scores:
    # Without trained weights and data a gradient says nothing, and costs the most of the whole run.
    match table.criterion if task.measurable else "l2":
        case "l1":
            return magnitude(network, analysis, 1)
        case "l2":
            return magnitude(network, analysis, 2)
        case "taylor":
            return first_order_taylor(network, analysis, _losses(task))


def _losses(task: Task) -> Iterator[Callable[[nn.Module], Tensor]]:
    def loss(batch: TrainingBatch, network: nn.Module) -> Tensor:
        return task.step(network, None, batch, Objective())["loss"]

    for batch in task.calibration_batches(CALIBRATION_BATCH):
        yield partial(loss, batch)


def _better_statistics(network: nn.Module, task: Task) -> nn.Module:
    if not task.measurable:
        return network
    inputs = (batch.inputs for batch in task.calibration_batches(CALIBRATION_BATCH))
    renewed = recalibrate_batch_norm(network, inputs)
    old, new = (task.score(module_runner(n, task), "validation").value for n in (network, renewed))
    return renewed if task.metric.drop(new, old) > 0 else network


def _notes(analysis: ChannelAnalysis, table: PruneTable) -> list[str]:
    """Which operators keep channels from being removed; that outputs keep their width goes without saying."""
    notes = []
    for freeze in analysis.freezes:
        if freeze.operator != "the network's output" and freeze.layers:
            named = ", ".join(freeze.layers[:3]) + (f" and {len(freeze.layers) - 3} more" * (len(freeze.layers) > 3))
            notes.append(f"prune kept channels of {named}: {freeze.operator} fixes their number.")
    return list(dict.fromkeys(notes))
