"""Stage `prune`: remove whole channels, the least important ones first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onnxdistill.graph.blocks import least_important_blocks, removable_blocks, without_blocks
from onnxdistill.graph.channels import ChannelAnalysis, analyse_channels
from onnxdistill.graph.groups import Narrowed
from onnxdistill.graph.importance import Scores, first_order_taylor, geometric_median, magnitude, norm_scale
from onnxdistill.graph.secondorder import second_order
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import (
    Steps,
    WeightCost,
    global_widths,
    most_important,
    uniform_widths,
    unmatched,
    weight_costs,
)
from onnxdistill.recipe import PruneTable
from onnxdistill.tasks import Task
from onnxdistill.training.repaired import best_repaired, calibration_losses


@dataclass(frozen=True)
class PruneResult:
    """The smaller network, what was cut, and what the user should know.

    Attributes:
        network: Trains and exports like any other.
        cuts: Channel groups that got narrower.
        blocks: Residual blocks that were left out.
        notes: A sentence each.
    """

    network: nn.Module
    cuts: list[Narrowed]
    blocks: list[str]
    notes: list[str]


def prune(network: nn.Module, task: Task, table: PruneTable, keep: Sequence[str] = ()) -> PruneResult:
    """Removes blocks, then channels, and repairs what took them.

    Of the ways to repair, the one is taken that scores best on some of the validation samples.

    Args:
        network: Not changed.
        task: Gives calibration samples, and the score on validation.
        table: The recipe's `[prune]`.
        keep: Names of modules that stay, with the blocks that they are in.

    Raises:
        NetworkError: If the network cannot be traced, or does not run with fewer channels.
    """
    shorter, blocks, notes = _without_blocks(network, task, table, keep)
    if table.ratio is None and table.macs_ratio is None:
        return PruneResult(shorter, [], blocks, notes)
    example = task.example_input(2)
    analysis = analyse_channels(shorter, example)
    steps = Steps(table.multiple_of, table.minimum, tuple(table.skip))
    scores = _importance(shorter, analysis, task, table)
    widths = _widths(shorter, analysis, scores, table, steps, example)
    notes += _notes(analysis)
    notes += unmatched("prune.skip", table.skip, network, analysis.groups)
    if not isinstance(table.multiple_of, int):
        notes += unmatched("prune.multiple_of", table.multiple_of, network, analysis.groups)
    if not widths:
        return PruneResult(shorter, [], blocks, [*notes, _why_nothing(analysis, table, steps)])
    if table.macs_ratio is not None:
        notes += _missed_share(weight_costs(shorter, analysis, example), analysis, widths, table)
    kept = most_important(scores, widths)
    smaller = remove_channels(shorter, analysis, kept, example)
    if task.measurable:
        removed = analysis.removed_indices(kept)
        # Targets are those of the batch norms as they are since the blocks have gone.
        smaller = best_repaired(shorter, smaller, removed, (), task, fit=table.repair)
    cuts = [
        Narrowed(group.name, group.size, widths[group.name], group.layers)
        for group in analysis.groups
        if group.name in widths
    ]
    return PruneResult(smaller, cuts, blocks, notes)


def _without_blocks(
    network: nn.Module, task: Task, table: PruneTable, keep: Sequence[str]
) -> tuple[nn.Module, list[str], list[str]]:
    """The network without the blocks that matter least, their names, and notes."""
    if table.blocks == 0:
        return network, [], []
    names = removable_blocks(network, task.example_input(2), [*table.skip, *keep])
    losses = list(calibration_losses(network, task)) if task.measurable else []

    def damage(shorter: nn.Module) -> float:
        with torch.inference_mode():
            return sum(float(loss(shorter)) for loss in losses)

    gone = least_important_blocks(network, names, table.blocks, damage)
    notes = []
    if len(gone) < table.blocks:
        notes.append(
            f"prune.blocks = {table.blocks}, but only {len(gone)} can go: {len(names)} blocks are a sum of what they "
            "get and a branch, and one of them stays."
        )
    shorter = without_blocks(network, gone)
    if gone and task.measurable:
        shorter = best_repaired(network, shorter, {}, gone, task, fit=table.repair)
    return shorter, gone, notes


def _widths(
    network: nn.Module,
    analysis: ChannelAnalysis,
    scores: Scores,
    table: PruneTable,
    steps: Steps,
    example: Tensor,
) -> dict[str, int]:
    if table.ratio is not None:
        return uniform_widths(analysis, table.ratio, steps)
    assert table.macs_ratio is not None  # one of the two is there
    return global_widths(analysis, scores, weight_costs(network, analysis, example), table.macs_ratio, steps)


def _importance(network: nn.Module, analysis: ChannelAnalysis, task: Task, table: PruneTable) -> Scores:
    # Without trained weights and data a gradient says nothing, and costs the most of the whole run.
    match table.criterion if task.measurable else "l2":
        case "l1":
            return magnitude(network, analysis, 1)
        case "l2":
            return magnitude(network, analysis, 2)
        case "norm_scale":
            return norm_scale(network, analysis)
        case "geometric_median":
            return geometric_median(network, analysis)
        case "taylor":
            return first_order_taylor(network, analysis, calibration_losses(network, task))
        case "second_order":
            return second_order(network, analysis, calibration_losses(network, task))


def _missed_share(
    costs: list[WeightCost], analysis: ChannelAnalysis, widths: dict[str, int], table: PruneTable
) -> list[str]:
    assert table.macs_ratio is not None
    removed = {name: analysis[name].size - width for name, width in widths.items()}
    left = sum(cost.macs(removed) for cost in costs) / max(1, sum(cost.macs({}) for cost in costs))
    if left <= table.macs_ratio:
        return []
    return [
        f"prune left {left:.0%} of the multiply-adds, more than prune.macs_ratio = {table.macs_ratio:g}: the rest "
        f"cannot go, for prune.minimum = {table.minimum}, prune.multiple_of, prune.skip, or what the network fixes."
    ]


def _why_nothing(analysis: ChannelAnalysis, table: PruneTable, steps: Steps) -> str:
    """Which key leaves all widths as they are."""
    free = [group for group in analysis.free if steps.may_cut(group)]
    if not free:
        return "prune removed nothing: no channels may go" + (" but those of prune.skip." if analysis.free else ".")
    wanted = "prune.ratio" if table.ratio is not None else "prune.macs_ratio"
    return (
        f"prune removed nothing: {wanted} asks for too little to reach the next narrower width, which "
        f"prune.multiple_of = {table.multiple_of} and prune.minimum = {table.minimum} allow."
    )


def _notes(analysis: ChannelAnalysis) -> list[str]:
    """Which operators keep channels from being removed; that outputs keep their width goes without saying."""
    notes = []
    for freeze in analysis.freezes:
        if freeze.operator != "the network's output" and freeze.layers:
            named = ", ".join(freeze.layers[:3]) + (f" and {len(freeze.layers) - 3} more" * (len(freeze.layers) > 3))
            notes.append(f"prune kept channels of {named}: {freeze.operator} fixes their number.")
    return list(dict.fromkeys(notes))
