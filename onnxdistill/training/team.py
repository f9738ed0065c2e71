"""The processes that train one network together, as `torchrun` starts them; without it, this one alone."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from onnxdistill.data.images import Indices
from onnxdistill.errors import OnnxDistillError

T = TypeVar("T")

# The others wait while the first one prunes, verifies and measures.
PATIENCE = timedelta(days=7)


class Team:
    """One process alone: everything is its own.

    Attributes:
        rank: 0 leads.
        size: Number of processes.
    """

    rank = 0
    size = 1

    def share(self, samples: Indices) -> Indices:
        """The samples of a batch that this process works on."""
        return samples[self.rank :: self.size]

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Replaces gradients by their means over all processes."""

    def total(self, value: float) -> float:
        """The sum over all processes."""
        return value

    def reseed(self, place: Sequence[int]) -> None:
        """Lets every process draw its own numbers at a place of a training, the same ones whenever it comes there.

        What a checkpoint holds is the random state of one process, which is enough for one.
        """

    def agreed(self, error: OnnxDistillError | None) -> None:
        """Raises an error that any of the processes has met, in all of them; to be called by all at the same place."""
        if error is not None:
            raise error

    def leaders(self, thing: T) -> T:
        """What the leading process has."""
        return thing

    def gathered(self, things: list[T]) -> list[list[T]]:
        """What every process has, in order."""
        return [things]

    @contextmanager
    def synchronised(self, network: nn.Module) -> Iterator[None]:
        """Batch norms see the batches of all processes within the block."""
        yield


class TorchrunTeam(Team):
    """Several processes; each sees every `size`-th sample of a batch. Launched, and connected."""

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def average(self, gradients: Sequence[Tensor]) -> None:
        """See `Team.average`."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        _add_up(flat)
        parts = torch.split(flat.div_(self.size), [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def reseed(self, place: Sequence[int]) -> None:
        """See `Team.reseed`."""
        words = np.random.SeedSequence((*place, self.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))  # of GPUs as well

    def total(self, value: float) -> float:
        """See `Team.total`."""
        summed = torch.tensor(value, dtype=torch.float64)
        torch.distributed.all_reduce(summed)
        return float(summed)

    def agreed(self, error: OnnxDistillError | None) -> None:
        """See `Team.agreed`."""
        if self.total(float(error is not None)):
            mine = [] if error is None else [(type(error), error.what, error.fix)]
            kind, what, fix = next(chain.from_iterable(self.gathered(mine)))
            raise kind(what, fix)

    def leaders(self, thing: T) -> T:
        """See `Team.leaders`; it is pickled, and the processes trust each other."""
        things = [thing]
        torch.distributed.broadcast_object_list(things, src=0)
        return things[0]

    def gathered(self, things: list[T]) -> list[list[T]]:
        """See `Team.gathered`."""
        everyones: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(everyones, things)
        return everyones

    @contextmanager
    def synchronised(self, network: nn.Module) -> Iterator[None]:
        """See `Team.synchronised`; torch's own synchronised batch norm works on GPUs only."""
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            # On the instance: the class, and a copy of the network made before, keep their own.
            norm.forward = functools.partial(_batch_norm, norm)  # type: ignore[method-assign]  # taken back below
        try:
            yield
        finally:
            for norm in norms:
                del norm.forward


@functools.cache
def current_team() -> Team:
    """The team that this process belongs to, for as long as it lives."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Team()
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    # Left to the end of the interpreter, gloo's threads may outlive what they work on, and abort the process.
    atexit.register(torch.distributed.destroy_process_group)
    return TorchrunTeam()


@functools.cache
def _between_gpus() -> torch.distributed.ProcessGroup | None:
    """NCCL, where every process has a GPU of its own; None where what lies on GPUs goes over gloo, too.

    To be asked by all processes at the same place.
    """
    has_one = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    has_one = has_one and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    everyones: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyones, has_one)
    if not all(everyones):
        return None
    return cast("torch.distributed.ProcessGroup", torch.distributed.new_group(backend="nccl", timeout=PATIENCE))


def _add_up(values: Tensor) -> None:
    """Replaces values by their sums over all processes."""
    torch.distributed.all_reduce(values, group=None if values.device.type == "cpu" else _between_gpus())


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient is the sum of theirs."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        _add_up(summed)
        return summed

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone()
        _add_up(summed)
        return summed


def _batch_norm(norm: nn.modules.batchnorm._BatchNorm, inputs: Tensor) -> Tensor:
    """Ioffe and Szegedy 2015, "Batch Normalization", algorithm 1, over the batches `[B, C, ...]` of all processes."""
    if not norm.training:
        return type(norm).forward(norm, inputs)
    values = inputs.float()
    places = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1, *[1] * (values.ndim - 2)]
    sums = torch.cat([values.sum(places), values.new_tensor([values.numel() / values.shape[1]])])
    sums = _summed(sums)
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean.view(shape)
    variance = _summed(centred.pow(2).sum(places)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None, "it comes with the running statistics"
            norm.num_batches_tracked.add_(1)
            momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
            norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var), momentum)
    normalised = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        normalised = normalised * norm.weight.view(shape) + norm.bias.view(shape)
    return normalised.to(inputs.dtype)


def _summed(values: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(values)
    return summed
