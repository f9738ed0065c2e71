"""Scoring a torch network on the validation images, as the task scores anything that runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import nn

from onnxdistill.tasks.base import Feeds, Runner, Task

ENOUGH = 1000
"""Validation samples that tell forms of a network apart, which often differ by many points, or good ones from bad."""


def module_runner(network: nn.Module, task: Task) -> Runner:
    """A runner of a torch module in float32 evaluation mode, wherever it lies."""
    tensors = chain(network.parameters(), network.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))

    def run(feeds: Feeds) -> Feeds:
        with torch.inference_mode():
            output = network(torch.from_numpy(feeds[task.input_name]).to(device))
        return {task.output_name: output.float().cpu().numpy()}

    return run


def validation_score(network: nn.Module, task: Task, most: int | None = None) -> float:
    """The task's metric on validation, of at most so many samples; the network is left in evaluation mode."""
    return task.score(module_runner(network.eval(), task), "validation", most=most).value


def best_on_validation(forms: Sequence[nn.Module], task: Task) -> nn.Module:
    """The form of a network that scores best on validation, of which some samples tell; of equal ones, the first."""
    scores = [validation_score(form, task, ENOUGH) for form in forms]
    best = 0
    for index, score in enumerate(scores):
        if task.metric.drop(score, scores[best]) > 0:
            best = index
    return forms[best]
