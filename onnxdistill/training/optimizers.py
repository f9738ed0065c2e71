"""Optimizers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterable
from math import cos, pi
from typing import Any

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from onnxdistill.recipe import TrainingTable


def build_optimizer(network: nn.Module, table: TrainingTable, further: Iterable[nn.Parameter] = ()) -> optim.Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW; biases and normalisation get no weight decay.

    Decaying them only slows training (He et al. 2019, "Bag of Tricks", section 3.1). They are the parameters with one
    dimension at most, those of normalisation layers, and those that are named a bias. With `layer_decay`, the last
    layer or block learns at the full rate and each one before it at so many times the rate of the next (Howard and
    Ruder 2018, "ULMFiT", section 3.2).

    Args:
        network: What is trained.
        table: Says how.
        further: Parameters beside it, at the full rate.
    """
    groups: list[dict[str, Any]] = []
    spared = _spared(network)
    for parameters, rate in _layers(network, table, further):
        for decay, chosen in (
            (table.weight_decay, [p for p in parameters if p.ndim > 1 and p not in spared]),
            (0.0, [p for p in parameters if p.ndim <= 1 or p in spared]),
        ):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "lr": rate})
    match table.optimizer:
        case "sgd":
            return optim.SGD(groups, table.learning_rate, table.momentum, nesterov=table.momentum > 0)
        case "adam":
            return optim.Adam(groups, table.learning_rate)
        case "adamw":
            return optim.AdamW(groups, table.learning_rate)


def build_schedule(optimizer: optim.Optimizer, table: TrainingTable, steps: int) -> LambdaLR:
    """A linear warm-up over `table.warmup * steps` steps, then down to zero, by steps, or constant.

    Sources: Loshchilov and Hutter 2017, "SGDR", equation 5, with one period, for `cosine`; He et al. 2015, "Deep
    Residual Learning", section 4.2, for `step`: a tenth after half of all steps, a hundredth after three quarters;
    Smith and Topin 2017, "Super-Convergence", for `one_cycle`, whose warm-up is half a cosine, as in torch's own.
    """
    warmup_steps = round(table.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            share = (step + 1) / (warmup_steps + 1)
            return 0.5 * (1.0 - cos(pi * share)) if table.schedule == "one_cycle" else share
        share = (step - warmup_steps) / max(1, steps - warmup_steps)
        match table.schedule:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 - share
            case "step":
                return 1.0 if 2 * step < steps else 0.1 if 4 * step < 3 * steps else 0.01
            case "cosine" | "one_cycle":
                return 0.5 * (1.0 + cos(pi * share))

    return LambdaLR(optimizer, factor)


def _spared(network: nn.Module) -> set[nn.Parameter]:
    """Parameters of more than one dimension that are not to be decayed either."""
    return {
        parameter
        for layer in network.modules()
        for name, parameter in layer.named_parameters(recurse=False)
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm) or "bias" in name
    }


def _layers(
    network: nn.Module, table: TrainingTable, further: Iterable[nn.Parameter]
) -> list[tuple[list[nn.Parameter], float]]:
    """What is trained, layer by layer, and the highest rate of each."""
    if table.layer_decay == 1.0:
        return [([*(p for p in network.parameters() if p.requires_grad), *further], table.learning_rate)]
    seen: set[nn.Parameter] = set()
    layers = []
    for parameters in _in_order(network):
        fresh = [p for p in dict.fromkeys(parameters) if p.requires_grad and p not in seen]
        seen.update(fresh)
        if fresh:
            layers.append(fresh)
    rates = [table.learning_rate * table.layer_decay**place for place in range(len(layers))][::-1]
    return [*zip(layers, rates, strict=True), (list(further), table.learning_rate)]


def _in_order(network: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each layer or block, in the order in which the network lists them.

    Blocks are what containers hold: `torchvision`'s ResNet has its in `layer1` to `layer4`. What holds most of a
    network is looked into as well, since it is a network that was wrapped, or the body of one.
    """
    most = sum(parameter.numel() for parameter in network.parameters()) / 2
    layers: list[list[nn.Parameter]] = []
    # Parameters of what is looked into itself, such as a class token, go with the layer that follows.
    waiting: list[nn.Parameter] = []

    def look(module: nn.Module) -> None:
        parameters = list(module.parameters())
        holds_most = sum(parameter.numel() for parameter in parameters) > most and any(module.children())
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or module is network or holds_most:
            waiting.extend(module.parameters(recurse=False))
            for child in module.children():
                look(child)
        elif any(parameter.ndim > 1 for parameter in parameters):
            layers.append([*waiting, *parameters])
            waiting.clear()
        else:
            # Normalisation is no layer by itself: it goes with what it follows.
            (layers[-1] if layers else waiting).extend(parameters)

    look(network)
    if not layers:
        return [waiting]
    layers[-1].extend(waiting)
    return layers
