"""Activation-aware second-order importance: how much the loss grows when a channel goes and the rest is repaired.

For a layer with weight W that takes columns x, S = E[x x^T]. Without the inputs of a channel C, and with all other
weights changed so that the outputs change least, output o changes by

    e_o = W_oC (S^-1_CC)^-1 W_oC^T    (mean square; Hassibi and Stork 1993, "Optimal Brain Surgeon", equation 5, for a
                                       set of weights as in Kurtic et al. 2023, "ZipLM", equation 2)

and the loss by about 1/2 P sum_o E[g_o^2] e_o, with the gradients g of the loss of a sample by the outputs and P
positions a sample (the empirical Fisher information, with the given labels, in place of the second derivative, outputs
and positions taken as independent, as in Martens and Grosse 2015, "K-FAC", section 3). Channels are removed greedily:
after every step S^-1 and W are those of the repaired layer, so that two channels that stand in for each other aren't
both called useless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from onnxdistill.graph.columns import (
    Layer,
    Sample,
    counting_samples,
    has_columns,
    input_columns,
    output_columns,
    watched,
)
from onnxdistill.graph.gradients import differentiable, gradients_by
from onnxdistill.graph.groups import ChannelAnalysis, ChannelGroup, Member
from onnxdistill.graph.importance import magnitude

# Columns of a batch that enter a second moment; more do not change it visibly.
COLUMNS_PER_BATCH = 4096
# Layers with longer columns would need more memory than they are worth: 5000^2 float64 are 200 MB.
LONGEST_COLUMN = 5000
# Relative to the mean of the diagonal: what little the inputs vary in is not trusted.
DAMPING = 1e-3
# As often it may be ten times as much, where rounding has left more than it.
_DAMPINGS = 4
# Of weights that are looked at at once.
_MOST_VALUES = 2**22
# Greedy steps a group; each removes a like share of the channels.
STEPS = 32


@dataclass
class Consumer:
    """A layer that takes channels: its weight as a matrix, the inverse of S, and what its outputs are worth.

    Attributes:
        weight: `[out, columns]`, float64.
        inverse: `[columns, columns]`, float64.
        worth: `[out]`, the loss a unit of mean square change of an output.
        kernel: Columns an input channel.
    """

    weight: Tensor
    inverse: Tensor
    worth: Tensor
    kernel: int

    def losses(self, channels: Sequence[Tensor]) -> Tensor:
        """The growth of the loss for every set of columns, each by itself."""
        grown = torch.empty(len(channels), dtype=torch.float64)
        lengths = [len(columns) for columns in channels]
        for length in set(lengths):  # a single one, but for channels that an input takes more often than others
            alike = [place for place, other in enumerate(lengths) if other == length]
            at_once = max(1, _MOST_VALUES // (length * len(self.weight)))
            for start in range(0, len(alike), at_once):
                places = alike[start : start + at_once]
                columns = torch.stack([channels[place] for place in places])
                blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
                weights = self.weight.T[columns]
                grown[places] = (torch.linalg.solve(blocks, weights) * weights).sum(1) @ self.worth
        return grown

    def remove(self, columns: Tensor) -> None:
        """Takes columns out and repairs the rest."""
        factor = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns])
        self.weight -= self.weight[:, columns] @ factor
        self.inverse -= self.inverse[:, columns] @ factor
        # What has gone stays zero, and a solve with it stays possible.
        self.weight[:, columns] = 0.0
        self.inverse[columns] = 0.0
        self.inverse[:, columns] = 0.0
        self.inverse[columns, columns] = 1.0


def second_order(
    network: nn.Module, analysis: ChannelAnalysis, losses: Iterable[Callable[[nn.Module], Tensor]]
) -> dict[str, Tensor]:
    """For every free group, by name, how much the loss grows when a channel goes, in greedy order.

    Channels that nothing with columns takes (only grouped convolutions, say) are scored by magnitude, brought to the
    mean of all others' scores.

    Args:
        network: In evaluation mode; its gradients are left as they were.
        analysis: Of this network.
        losses: For every batch, a function from the network to its mean loss.
    """
    members = {group.name: _consuming(network, group) for group in analysis.free}
    layers = sorted({member.layer for found in members.values() for member in found})
    moments, worth = _statistics(network, layers, losses)
    scores: dict[str, Tensor] = {}
    for group in analysis.free:
        consumers = [(member, _consumer(network, member.layer, moments, worth)) for member in members[group.name]]
        known = [(member, consumer) for member, consumer in consumers if consumer is not None]
        if known:
            scores[group.name] = _greedy(group, known)
    mean = float(torch.cat(list(scores.values())).mean()) if scores else 1.0
    plain = magnitude(network, analysis, 2)
    return {group.name: scores.get(group.name, mean * plain[group.name]) for group in analysis.free}


def _consuming(network: nn.Module, group: ChannelGroup) -> list[Member]:
    return [
        member
        for member in group.members
        if member.dim == 1 and member.tensor.endswith(".weight") and _is_known(network.get_submodule(member.layer))
    ]


def _is_known(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return False
    return has_columns(layer) and layer.weight[0].numel() <= LONGEST_COLUMN


def _statistics(
    network: nn.Module, layers: list[str], losses: Iterable[Callable[[nn.Module], Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    moments: dict[str, Tensor] = {}
    worth: dict[str, Tensor] = {}
    outputs: list[tuple[str, Layer, Tensor]] = []
    calls: dict[str, int] = {}
    batches = 0

    def see(name: str, layer: Layer, inputs: Tensor, result: Tensor) -> None:
        moment = _second_moment(input_columns(layer, inputs.detach(), Sample(COLUMNS_PER_BATCH, batches)))
        moments[name] = moments[name] + moment if name in moments else moment
        calls[name] = calls.get(name, 0) + 1
        outputs.append((name, layer, result))

    with (
        watched(network, layers, see),
        counting_samples(network) as samples,
        differentiable(network),
        torch.enable_grad(),
    ):
        for loss in losses if layers else ():
            outputs.clear()
            value = loss(network)
            if not outputs:
                continue
            gradients = gradients_by(value, [result for _, _, result in outputs])
            for (name, layer, _), gradient in zip(outputs, gradients, strict=True):
                if gradient is None:
                    continue
                # The loss is a mean over the batch: a sample's own gradient is that many times larger. The layer may
                # see windows or tokens of a sample as if they were samples.
                each = output_columns(layer, gradient.double()) * samples[-1]
                positions = len(each) / samples[-1]
                square = 0.5 * positions * (each**2).mean(0)
                worth[name] = worth[name] + square if name in worth else square
            batches += 1
    # A layer that runs twice: its moment is the mean over both, and a change of it counts in both places.
    for name, total in moments.items():  # in place: a deep network has gigabytes of them
        total.div_(calls[name])
    return moments, {name: total / max(1, batches) for name, total in worth.items()}


def _consumer(network: nn.Module, name: str, moments: dict[str, Tensor], worth: dict[str, Tensor]) -> Consumer | None:
    if name not in moments or name not in worth:
        return None
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight = layer.weight.detach().double().flatten(1)
    kernel = 1 if isinstance(layer, nn.Linear) else layer.kernel_size[0] * layer.kernel_size[1]
    return Consumer(weight.clone(), _damped_inverse(moments[name]), worth[name], kernel)


def _second_moment(columns: Tensor) -> Tensor:
    """E[x x^T] in float64, of which only products of deviations are summed up in float32.

    Of channels that hardly change, the sum of products would err by more than the damping.
    """
    mean = columns.mean(0, dtype=torch.float64)
    deviations = (columns - mean).to(torch.float32)
    return (deviations.T @ deviations).double() / len(columns) + mean[:, None] * mean


def _damped_inverse(moment: Tensor) -> Tensor:
    """Not a number if the moment isn't."""
    damping = DAMPING * moment.diagonal().mean().clamp_min(1e-12)
    identity = torch.eye(len(moment), dtype=moment.dtype)
    for _ in range(_DAMPINGS):
        root, failed = torch.linalg.cholesky_ex(moment + damping * identity)
        if not failed:
            return torch.cholesky_inverse(root)
        damping = 10 * damping
    return torch.full_like(moment, torch.nan)


def _greedy(group: ChannelGroup, known: list[tuple[Member, Consumer]]) -> Tensor:
    columns = [
        ([_columns_of(member.indices[channel], consumer.kernel) for channel in range(group.size)], consumer)
        for member, consumer in known
    ]
    grown = torch.zeros(group.size, dtype=torch.float64)
    left = list(range(group.size))
    last = 0.0
    step = max(1, group.size // STEPS)
    while left:
        marginal = sum(
            (consumer.losses([own[channel] for channel in left]) for own, consumer in columns),
            start=torch.zeros(len(left), dtype=torch.float64),
        )
        order = torch.argsort(marginal, stable=True)[:step].tolist()
        for place in order:
            # Not below those before it, so that the order by score is the order of removal.
            last = max(last, float(marginal[place]))
            grown[left[place]] = last
        for own, consumer in columns:
            # At once: what is repaired is the same, and the large inverse is gone through a single time.
            consumer.remove(torch.cat([own[left[place]] for place in order]))
        left = [channel for place, channel in enumerate(left) if place not in order]
    return grown


def _columns_of(indices: np.ndarray[tuple[int], np.dtype[np.int64]], kernel: int) -> Tensor:
    starts = torch.from_numpy(indices) * kernel
    return (starts[:, None] + torch.arange(kernel)).reshape(-1)
