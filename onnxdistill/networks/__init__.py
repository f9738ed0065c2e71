"""Networks by name: the built-in ones, torchvision's, and a user's own `module:function`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import torchvision
from torch import nn

from onnxdistill.errors import NetworkError
from onnxdistill.networks.cifar_resnet import CifarResNet, resnet20, resnet56
from onnxdistill.networks.digits_resnet import DigitsResNet, digits_resnet

__all__ = ["BUILT_IN", "CifarResNet", "DigitsResNet", "build_network"]

Builder = Callable[..., nn.Module]

BUILT_IN: dict[str, Builder] = {
    "digits-resnet": digits_resnet,
    "cifar-resnet20": resnet20,
    "cifar-resnet56": resnet56,
}


def build_network(name: str, class_count: int, seed: int, folder: Path | None = None) -> nn.Module:
    """Builds an untrained network with `class_count` outputs, in evaluation mode.

    Args:
        name: A name of `BUILT_IN`; `torchvision:NAME` for a torchvision classifier; or `MODULE:FUNCTION`,
            where MODULE is importable or a path ending in `.py`, and FUNCTION returns a module.
            FUNCTION gets `num_classes` if it has a parameter of that name.
        class_count: Number of outputs.
        seed: Seeds the initial weights; the global random state is left as it was.
        folder: Where a relative path of a `.py` file starts.

    Raises:
        NetworkError: If the name is unknown, or building fails.
    """
    builder = _builder(name, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith("torchvision:") or _takes(builder, "num_classes"):
            network = builder(num_classes=class_count)
        else:
            network = builder()
    if not isinstance(network, nn.Module):
        raise NetworkError(
            f"teacher.network = {name!r} returned a {type(network).__name__}, not a torch.nn.Module.",
            "Let the function return the network itself.",
        )
    return network.eval()


def _takes(builder: Builder, parameter: str) -> bool:
    return parameter in inspect.signature(builder).parameters


def _builder(name: str, folder: Path | None) -> Builder:
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        known = [*BUILT_IN, *(f"torchvision:{n}" for n in torchvision.models.list_models(torchvision.models))]
        raise NetworkError(f"teacher.network = {name!r} is not a network that is known here.", _nearest(name, known))
    place, _, function = name.rpartition(":")
    if place == "torchvision":
        return _torchvision_builder(function)
    return _user_builder(place, function, folder)


def _torchvision_builder(model: str) -> Builder:
    known = torchvision.models.list_models(torchvision.models)
    if model not in known:
        raise NetworkError(f"torchvision has no classifier named {model!r}.", _nearest(model, known))

    def build(num_classes: int) -> nn.Module:
        extra = {"aux_logits": False, "init_weights": False} if model in ("googlenet", "inception_v3") else {}
        network: nn.Module = torchvision.models.get_model(model, weights=None, num_classes=num_classes, **extra)
        return network

    return build


def _user_builder(place: str, function: str, folder: Path | None) -> Builder:
    module = _module_from_file(place, folder) if place.endswith(".py") else _module_by_name(place)
    builder = getattr(module, function, None)
    if not callable(builder):
        raise NetworkError(
            f"{place} has no function {function!r}.",
            "Write teacher.network as MODULE:FUNCTION or path/to/file.py:FUNCTION.",
        )
    return builder  # type: ignore[no-any-return]  # a user's function: checked when it has been called


def _module_by_name(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise NetworkError(
            f"teacher.network names the module {place!r}, which cannot be imported: {error}.",
            "Install the package that holds it, or give a path that ends in .py.",
        ) from error


def _module_from_file(place: str, folder: Path | None) -> ModuleType:
    path = Path(place) if Path(place).is_absolute() else (folder or Path()) / place
    if not path.is_file():
        raise NetworkError(f"teacher.network names the file {path}, which does not exist.", "Correct the path.")
    name = f"onnxdistill_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise NetworkError(f"{path} cannot be loaded as a Python module.", "Give a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up here
    spec.loader.exec_module(module)
    return module


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    return f"Built in are {', '.join(BUILT_IN)}; else write torchvision:NAME or MODULE:FUNCTION."
