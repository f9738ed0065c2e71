"""Making good what a cut has done, without training: batch norms and least squares, by what scores on validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from onnxdistill.graph.gradients import saved_bytes
from onnxdistill.graph.groups import Removed
from onnxdistill.graph.recalibrate import match_batch_norm, recalibrate_batch_norm
from onnxdistill.graph.repair import layers_after, layers_that_lost_inputs, refit
from onnxdistill.tasks.base import Objective, Task, TrainingBatch
from onnxdistill.training.validation import best_on_validation

CALIBRATION_BATCH = 64

# What a backward pass may hold. Whoever looks at the outputs of layers holds about as much again.
_HELD_BYTES, _FEWEST = 2**30, 4


def scored_at_once(network: nn.Module, task: Task) -> int:
    """How many samples go through a network at once where gradients are taken: fewer of large images."""
    return max(_FEWEST, min(CALIBRATION_BATCH, _HELD_BYTES // max(1, saved_bytes(network, task.example_input(1)))))


def calibration_losses(network: nn.Module, task: Task) -> Iterator[Callable[[nn.Module], Tensor]]:
    """For every batch of calibration samples, a function from a network to its mean loss.

    Args:
        network: Whose gradients will be taken, or one that is as large.
        task: Gives the samples.
    """

    def loss(batch: TrainingBatch, network: nn.Module) -> Tensor:
        return task.step(network, batch.copied(), Objective())["loss"]

    for batch in task.calibration_batches(scored_at_once(network, task)):
        yield partial(loss, batch)


@dataclass(frozen=True)
class CalibrationInputs:
    """The inputs of all calibration samples, batch by batch, the same in every iteration; one is held at a time."""

    task: Task

    def __iter__(self) -> Iterator[Tensor]:
        return (batch.inputs for batch in self.task.calibration_batches(CALIBRATION_BATCH))


def best_repaired(
    network: nn.Module, smaller: nn.Module, removed: Removed, blocks: Sequence[str], task: Task, *, fit: bool
) -> nn.Module:
    """Of a smaller network as it is, with other statistics, and fitted to the whole one, what scores best.

    Args:
        network: Before the cut.
        smaller: After it.
        removed: What went, as `ChannelAnalysis.removed_indices` gives it.
        blocks: That went.
        task: Gives calibration samples, and the score on validation.
        fit: Whether layers may be fitted by least squares.
    """
    inputs = CalibrationInputs(task)
    forms = [
        smaller,
        recalibrate_batch_norm(smaller, inputs),
        match_batch_norm(network, smaller, removed, inputs),
    ]
    if fit:
        layers = [*layers_that_lost_inputs(smaller, removed), *layers_after(smaller, blocks, next(iter(inputs)))]
        forms.append(refit(network, smaller, list(dict.fromkeys(layers)), removed, inputs))
    return best_on_validation(forms, task)
