"""Optimizers and learning-rate schedules."""

from __future__ import annotations

from math import cos, pi

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from onnxdistill.recipe import TrainingTable


def build_optimizer(network: nn.Module, table: TrainingTable) -> optim.Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW; one-dimensional parameters get no weight decay.

    Biases and the scales of normalisation layers are the one-dimensional ones; decaying them only slows
    training (He et al. 2019, "Bag of Tricks", section 3.1).
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": table.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match table.optimizer:
        case "sgd":
            return optim.SGD(groups, table.learning_rate, table.momentum, nesterov=table.momentum > 0)
        case "adam":
            return optim.Adam(groups, table.learning_rate)
        case "adamw":
            return optim.AdamW(groups, table.learning_rate)


def build_schedule(optimizer: optim.Optimizer, table: TrainingTable, steps: int) -> LambdaLR:
    """A linear warm-up over `table.warmup * steps` steps, then cosine to zero or constant.

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5, with one period.
    """
    warmup_steps = round(table.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if table.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + cos(pi * (step - warmup_steps) / max(1, steps - warmup_steps)))

    return LambdaLR(optimizer, factor)
