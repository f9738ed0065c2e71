"""The network that learns, with all that its steps change: adapters, optimizer, schedule, and a moving average."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from onnxdistill.recipe import TrainingTable
from onnxdistill.training.checkpoint import State
from onnxdistill.training.features import Follower
from onnxdistill.training.hardware import Hardware, copied
from onnxdistill.training.layout import channels_last
from onnxdistill.training.optimizers import build_optimizer, build_schedule


class Learner:
    """A copy of a network, and what trains it.

    Args:
        network: Not changed.
        table: Says how it is trained.
        steps: In all; `reschedule` changes that.
        hardware: Where the copy lies.
        follow: Puts layers of the copy beside those of a teacher; None if none are compared.

    Attributes:
        network: The copy, channels last in memory. Of a network with nothing to train all of it is trained.
        follower: The same with its layers compared, if they are.
        notes: Sentences on what is not trained.
    """

    def __init__(
        self,
        network: nn.Module,
        table: TrainingTable,
        steps: int,
        hardware: Hardware,
        follow: Callable[[nn.Module], Follower] | None = None,
    ) -> None:
        self.network = channels_last(copy.deepcopy(network).to(hardware.device))
        self.notes = _thawed(self.network)
        self._table = table
        self._average = None
        if table.average:  # a copy of the network as it is before layers of it are watched
            self._average = AveragedModel(self.network, avg_fn=_blend(table.average), use_buffers=True)
        self.follower = None if follow is None else follow(self.network)
        adapters = [] if self.follower is None else self.follower.adapters.parameters()
        self._optimizer = build_optimizer(self.network, table, adapters)
        self.reschedule(steps)

    @property
    def trained(self) -> nn.Module:
        """What is called in a step: the network, with its adapters if it has some."""
        return self.network if self.follower is None else self.follower

    @property
    def shown(self) -> nn.Module:
        """The network whose weights count: the average of those on the way, if one is kept."""
        return self.network if self._average is None else self._average.module

    @property
    def rate(self) -> float:
        """The learning rate of the next step, of the layers that learn fastest."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def start_training(self) -> None:
        """Brings the network into training mode, but for normalisation that is frozen: its statistics stay as well."""
        self.network.train()
        for layer in self.network.modules():
            parameters = list(layer.parameters(recurse=False))
            if isinstance(layer, _BatchNorm) and parameters and not any(one.requires_grad for one in parameters):
                layer.eval()

    def reschedule(self, steps: int) -> None:
        """Starts the schedule of the learning rate again, over so many steps."""
        self._schedule = build_schedule(self._optimizer, self._table, steps)
        self._rates = list(self._schedule.base_lrs)

    def halve_rate(self, times: int) -> None:
        """Halves the learning rates of the schedule so many times, now and for all steps that follow."""
        self._schedule.base_lrs = [rate * 0.5**times for rate in self._rates]
        for group, rate in zip(self._optimizer.param_groups, self._schedule.base_lrs, strict=True):
            group["lr"] = rate * self._schedule.lr_lambdas[0](self._schedule.last_epoch)

    def forget_gradients(self) -> None:
        """To be called before the gradients of a step are computed."""
        self._optimizer.zero_grad(set_to_none=True)

    def update(self) -> None:
        """One step of the optimizer, with the gradients that the parameters have."""
        if self._table.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained.parameters(), self._table.clip_norm)
        self._optimizer.step()
        self._schedule.step()
        if self._average is not None:
            # Those that are made anew in every call may have another size, or come from a scoring.
            _set_unsaved_buffers(self._average.module, _unsaved_buffers(self.network))
            self._average.update_parameters(self.network)

    def is_finite(self) -> bool:
        """Whether no weight has become infinite or NaN."""
        return all(bool(parameter.isfinite().all()) for parameter in self.network.parameters())

    def weights(self) -> State:
        """A copy of the weights that count, and of the buffers that a state dict leaves out."""
        return copied({"saved": self.shown.state_dict(), "unsaved": _unsaved_buffers(self.shown)})

    def finished(self, weights: State) -> nn.Module:
        """The network with these weights, on the processor, in evaluation mode, nothing of the training left on it."""
        if self.follower is not None:
            self.follower.close()
        self.network.load_state_dict(weights["saved"])
        _set_unsaved_buffers(self.network, weights["unsaved"])
        return self.network.cpu().to(memory_format=torch.contiguous_format).eval()

    def state(self) -> State:
        """All that steps have changed; what is in it goes on changing."""
        return {
            "network": self.network.state_dict(),
            "adapters": None if self.follower is None else self.follower.adapters.state_dict(),
            "unsaved": _unsaved_buffers(self.network),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "average_unsaved": None if self._average is None else _unsaved_buffers(self._average),
        }

    def restore(self, state: State) -> None:
        """The inverse of `state`, with the steps that `reschedule` was given then."""
        self.network.load_state_dict(state["network"])
        if self.follower is not None:
            self.follower.adapters.load_state_dict(state["adapters"])
        _set_unsaved_buffers(self.network, state["unsaved"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
            _set_unsaved_buffers(self._average, state["average_unsaved"])


def _thawed(network: nn.Module) -> list[str]:
    """Lets a network that is frozen as a whole be trained; says so if a part of one is frozen."""
    parameters = list(network.parameters())
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    if len(frozen) == len(parameters):
        for parameter in parameters:
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        return []
    if not frozen:
        return []
    counts = [sum(parameter.numel() for parameter in some) for some in (frozen, parameters)]
    return [f"{counts[0]:,} of its {counts[1]:,} parameters were frozen in the network, and stayed as they were"]


def _blend(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """A step of a moving average; what is not a real number, such as an index or a counter, is the latest one.

    At first it decays faster, by (1 + n) / (10 + n) after n steps, or else a short training would end at little more
    than its first step; TensorFlow's `ExponentialMovingAverage` does so.
    """

    def blended(average: Tensor, latest: Tensor, count: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return latest
        blend = torch.lerp(average, latest, 1.0 - min(decay, (1.0 + int(count)) / (10.0 + int(count))))
        return torch.where(average == latest, latest, blend)  # infinities, as in masks, have no difference

    return blended


def _unsaved_buffers(network: nn.Module) -> dict[str, Tensor]:
    """The buffers that a state dict leaves out."""
    saved = network.state_dict().keys()
    return {name: buffer for name, buffer in network.named_buffers() if name not in saved}


def _set_unsaved_buffers(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """The inverse of `_unsaved_buffers`; what is there may have been made in a forward, and cannot be written to."""
    known = dict(network.named_buffers())
    for name, value in values.items():
        there = known.get(name)  # before the first call there may be none
        as_before = there is not None and there.shape == value.shape and there.dtype == value.dtype
        if there is not None and as_before and not there.is_inference():
            there.copy_(value)  # others may hold the same tensor
            continue
        place, _, leaf = name.rpartition(".")
        device = next((one.device for one in (there, *network.parameters()) if one is not None), value.device)
        network.get_submodule(place).register_buffer(leaf, value.to(device, copy=True), persistent=False)
