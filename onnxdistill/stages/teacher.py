"""Stage `teacher`: build the network to be compressed, load its weights, and train it if the recipe says so."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torchvision
from torch import nn

from onnxdistill.errors import WeightsError
from onnxdistill.networks import build_network
from onnxdistill.recipe import Recipe
from onnxdistill.tasks import Task
from onnxdistill.tasks.base import Objective
from onnxdistill.training import TrainingResult, train
from onnxdistill.training.loop import OnStatus


@dataclass(frozen=True)
class TeacherResult:
    """The teacher in evaluation mode, and its training, if it was trained here."""

    network: nn.Module
    training: TrainingResult | None


def teacher(recipe: Recipe, task: Task, on_status: OnStatus | None = None) -> TeacherResult:
    """Builds the teacher.

    Args:
        recipe: Names the network, the weights and the training.
        task: Gives the number of classes, and data to train on.
        on_status: Called during training.

    Raises:
        NetworkError: If the network is unknown.
        WeightsError: If the weights are missing, damaged, or of another architecture.
        TrainingError: If training diverges.
    """
    table = recipe.teacher
    network = build_network(table.network, len(task.class_names), recipe.seed)
    if table.weights != "none":
        _load(network, _state_dict(table.network, table.weights), table.weights)
    if table.train is None:
        return TeacherResult(network, None)
    training = train(network, task, table.train, recipe.seed, Objective(), on_status=on_status)
    return TeacherResult(training.network, training)


def _state_dict(network: str, weights: str) -> dict[str, Any]:
    if network.startswith("torchvision:") and "/" not in weights and "." not in weights:
        return _published(network.removeprefix("torchvision:"), weights)
    return _from_file(Path(weights))


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(f"teacher.weights = {path} does not exist or is not a file.", "Correct the path.")
    try:
        # weights_only: a checkpoint is data; unpickling it freely would run code from it.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} cannot be read as a PyTorch state dict: {_first_line(error)}",
            "The file is damaged, truncated, or holds more than tensors; save it again with "
            "torch.save(network.state_dict(), path).",
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise WeightsError(
            f"{path} holds a {type(loaded).__name__}, not a state dict.",
            "Save it with torch.save(network.state_dict(), path).",
        )
    # DataParallel and DistributedDataParallel prefix every key.
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def _published(model: str, weights: str) -> dict[str, Any]:
    enum = torchvision.models.get_model_weights(model)
    if weights not in enum.__members__:
        raise WeightsError(
            f"torchvision has no weights {weights!r} for {model}.",
            f"Choose one of {', '.join(enum.__members__)}.",
        )
    try:
        state: dict[str, Any] = enum[weights].get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # urllib's URLError is an OSError; a bad hash is a RuntimeError
        raise WeightsError(
            f"The weights {weights} of torchvision's {model} cannot be downloaded: {_first_line(error)}",
            "Check the network; or download the file elsewhere and set teacher.weights to its path; or set "
            'teacher.weights = "none" to measure latency only.',
        ) from error
    return state


def _load(network: nn.Module, state: dict[str, Any], source: str) -> None:
    own = network.state_dict()
    # Older checkpoints lack the counter of batch norm, which nothing reads here.
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} here"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if missing or unexpected or shapes:
        _refuse(source, missing, unexpected, shapes)
    network.load_state_dict(state, strict=False)


def _refuse(source: str, missing: list[str], unexpected: list[str], shapes: list[str]) -> NoReturn:
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing)} of the network's tensors ({_some(missing)})")
    if unexpected:
        parts.append(f"it has {len(unexpected)} that the network lacks ({_some(unexpected)})")
    if shapes:
        parts.append(f"{len(shapes)} shapes differ ({_some(shapes)})")
    raise WeightsError(
        f"{source} is for another architecture: {'; '.join(parts)}.",
        "Set teacher.network to the network that the weights were saved from; the number of outputs is the number "
        "of classes in the data.",
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", …" if len(names) > 2 else "")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0][:200].rstrip(".") if lines else type(error).__name__) + "."
