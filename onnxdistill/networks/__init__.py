"""Networks by name: the built-in ones, torchvision's, and a user's own `module:function`."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from weakref import WeakSet

import torch
from torch import Tensor, nn

from onnxdistill.errors import NetworkError
from onnxdistill.networks.calling import explained
from onnxdistill.networks.cifar_mobilenet import mobilenet_v2
from onnxdistill.networks.cifar_resnet import CifarResNet, resnet20, resnet56
from onnxdistill.networks.cifar_vgg import CifarVGG, vgg16
from onnxdistill.networks.digits_resnet import DigitsResNet, digits_resnet
from onnxdistill.networks.torchvision_classifiers import CLASSIFIERS, build_classifier
from onnxdistill.networks.user import user_builder

__all__ = ["BUILT_IN", "CifarResNet", "CifarVGG", "DigitsResNet", "build_network", "import_files", "probe"]

Builder = Callable[..., nn.Module]

BUILT_IN: dict[str, Builder] = {
    "digits-resnet": digits_resnet,
    "cifar-resnet20": resnet20,
    "cifar-resnet56": resnet56,
    "cifar-vgg16": vgg16,
    "cifar-mobilenet_v2": mobilenet_v2,
}


_BUILT = WeakSet[nn.Module]()
"""What was built before, with all modules in it, as long as it is used."""


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
    arguments = {"num_classes": class_count} if _takes(builder, "num_classes") else {}
    fix = "Let the function build the network with no other argument than num_classes."
    with torch.random.fork_rng(devices=[]), explained(f"teacher.network = {name!r} cannot be built", fix):
        torch.manual_seed(seed)
        network = builder(**arguments)
        if isinstance(network, nn.Module):
            network = _of_its_own(network)
    if not isinstance(network, nn.Module):
        raise NetworkError(
            f"teacher.network = {name!r} returned a {type(network).__name__}, not a torch.nn.Module.",
            "Let the function return the network itself.",
        )
    return network.eval()


def import_files(names: Iterable[str]) -> None:
    """Imports what networks are built by, in this order, which modules of equal files are numbered by.

    Args:
        names: As for `build_network`.

    Raises:
        NetworkError: If one is unknown, or cannot be imported.
    """
    for name in names:
        _builder(name, None)


def probe(name: str, network: nn.Module, inputs: Tensor, mode: str = "") -> object:
    """Runs a network once, to see what it returns.

    Args:
        name: How the recipe names it.
        network: In evaluation mode, or in another one that `mode` names.
        inputs: What it will get.
        mode: For the message.

    Raises:
        NetworkError: If the network raises anything.
    """
    shape = " x ".join(str(size) for size in inputs.shape)
    fix = "It has to map a batch of images as the recipe's [data] describes them; see data.image_size."
    # Not inference mode: what a network makes or keeps in its first call may have to be trained later.
    with torch.no_grad(), explained(f"teacher.network = {name!r} does not run on float32 images [{shape}]{mode}", fix):
        return network(inputs)


def _of_its_own(network: nn.Module) -> nn.Module:
    """A network that shares nothing with those before it, such as layers that its file makes once."""
    if any(module in _BUILT for module in network.modules()):
        network = copy.deepcopy(network)
    _BUILT.update(network.modules())
    return network


def _takes(builder: Builder, parameter: str) -> bool:
    try:
        return parameter in inspect.signature(builder).parameters
    except (TypeError, ValueError):  # functions that are written in C have none
        return False


def _builder(name: str, folder: Path | None) -> Builder:
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        known = [*BUILT_IN, *(f"torchvision:{classifier}" for classifier in CLASSIFIERS)]
        raise NetworkError(f"teacher.network = {name!r} is not a network that is known here.", _nearest(name, known))
    place, _, function = name.rpartition(":")
    if place != "torchvision":
        return user_builder(place, function, folder)
    if function not in CLASSIFIERS:
        raise NetworkError(f"torchvision has no classifier named {function!r}.", _nearest(function, CLASSIFIERS))
    return partial(build_classifier, function)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    return f"Built in are {', '.join(BUILT_IN)}; else write torchvision:NAME or MODULE:FUNCTION."
