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
