"""Weights of a network: read from a file or published by torchvision, checked, and loaded."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.nn.parameter import is_lazy

from onnxdistill.errors import WeightsError, is_of_memory
from onnxdistill.networks.calling import described
from onnxdistill.networks.published import is_published, published_state
from onnxdistill.networks.torchvision_classifiers import rename_published

# DataParallel and DistributedDataParallel put it before every name.
PARALLEL_PREFIX = "module."

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_weights(network: nn.Module, name: str, weights: str, new_head: bool = False) -> None:
    """Loads weights into a network.

    Args:
        network: Changed in place.
        name: How the recipe names the network.
        weights: A file, or for `torchvision:NAME` the name of a weight enum.
        new_head: Whether layers that have another number of outputs there keep the weights that they have here.

    Raises:
        WeightsError: If the weights are missing, damaged, not finite, or of another architecture.
    """
    place, _, model = name.rpartition(":")
    state = published_state(name, weights) if is_published(name, weights) else _from_file(Path(weights))
    if all(key.startswith(PARALLEL_PREFIX) for key in state) and not state.keys() & network.state_dict().keys():
        consume_prefix_in_state_dict_if_present(state, PARALLEL_PREFIX)
    if place == "torchvision":
        rename_published(model, state)
    if new_head:
        _keep_head(network, state, weights)
    _load(network, state, weights)
    _check_finite(network, weights)


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        fix = "Correct the path."
        if re.fullmatch(r"\w+_Weights\.[A-Z][A-Z0-9_]*", path.name):
            fix = f"Of torchvision's own weights, write the last part alone: {path.name.rpartition('.')[2]}."
        raise WeightsError(f"teacher.weights = {path} does not exist or is not a file.", fix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # weights_only: a checkpoint is data; unpickling it freely would run code from it.
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise anything
        if is_of_memory(error):
            raise
        # Without torch's own text, which advises to switch weights_only off.
        raise WeightsError(
            f"{path} cannot be read as a PyTorch state dict ({type(error).__name__}).",
            "The file is damaged, truncated, or holds more than tensors; save it again with "
            "torch.save(network.state_dict(), path).",
        ) from error
    if isinstance(loaded, dict):
        # As trainers save them, beside an optimizer's state and more.
        inside = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), dict)), None)
        loaded = loaded if inside is None else inside
    _check_form(path, loaded)
    return loaded  # type: ignore[no-any-return]  # whatever the file held: its form has been checked


def _check_form(path: Path, loaded: object) -> None:
    fix = "Save it with torch.save(network.state_dict(), path)."
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict.", fix)
    for key, value in loaded.items():
        if not isinstance(key, str):
            raise WeightsError(f"{path} holds something under the {type(key).__name__} {key!r}, not under a name.", fix)
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path} is not a state dict: {key!r} is a {type(value).__name__}, not a tensor.", fix)


def _keep_head(network: nn.Module, state: dict[str, Any], source: str) -> None:
    """Replaces the layers of `state` that differ from the network's in nothing but their number of outputs."""
    own = network.state_dict()
    common = [name for name in own.keys() & state.keys() if not is_lazy(own[name])]
    layers = {
        name.rpartition(".")[0]
        for name in common
        if own[name].shape != state[name].shape and own[name].shape[1:] == state[name].shape[1:]
    }
    if not layers:
        raise WeightsError(
            f"{source} has no layer whose number of outputs differs from the network's.",
            "Leave out teacher.new_head: its head fits as it is.",
        )
    state.update({name: own[name] for name in common if name.rpartition(".")[0] in layers})


def _load(network: nn.Module, state: dict[str, Any], source: str) -> None:
    own = network.state_dict()
    shapes = [
        f"{name} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} here"
        for name in sorted(own.keys() & state.keys())
        if not is_lazy(own[name]) and own[name].shape != state[name].shape
    ]
    if shapes:
        _refuse(source, sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys()), shapes)
    try:
        result = network.load_state_dict(state, strict=False)
    except Exception as error:  # modules may have loaders of their own
        if is_of_memory(error):
            raise
        raise WeightsError(
            f"{source} cannot be loaded into the {type(network).__name__}: {described(error)}.",
            "Save it with torch.save(network.state_dict(), path), from the same network.",
        ) from error
    # Modules may have read old names, so it is torch that says what is left. Older checkpoints lack the counter
    # of batch norm, which nothing reads here.
    missing = sorted(name for name in result.missing_keys if not name.endswith("num_batches_tracked"))
    if missing or result.unexpected_keys:
        _refuse(source, missing, sorted(result.unexpected_keys), [])


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
        "Set teacher.network to the network that the weights were saved from, with as many outputs as the data has "
        "classes. A teacher whose weights are of other classes needs new_head = true and [teacher.train].",
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", …" if len(names) > 2 else "")


def _check_finite(network: nn.Module, source: str) -> None:
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            _refuse_values(source, name)
    for name, buffer in network.named_buffers():
        if buffer.isnan().any():  # a mask of attention may well be infinite
            _refuse_values(source, name)


def _refuse_values(source: str, name: str) -> NoReturn:
    raise WeightsError(
        f"{source} holds NaN or infinity in the tensor {name}.",
        "Take a checkpoint from before the training diverged.",
    )
