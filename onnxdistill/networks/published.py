"""Weights that torchvision publishes, and how images become inputs for them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from onnxdistill.errors import WeightsError, is_of_memory
from onnxdistill.networks.calling import described
from onnxdistill.recipe.weights import NO_WEIGHTS

_PLACE = "torchvision:"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input.

    Attributes:
        size: Height and width of what is cut out of the middle, in pixels.
        resize: The shorter side before that.
        mean: Of every channel, of images in 0..1.
        std: Likewise.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_published(network: str, weights: str) -> bool:
    """Whether the weights that a recipe names for a network are torchvision's, rather than a file."""
    return network.startswith(_PLACE) and weights != NO_WEIGHTS and "/" not in weights and "." not in weights


def published_state(network: str, weights: str) -> dict[str, Any]:
    """The state dict of published weights, which are downloaded if they have not been before.

    Args:
        network: `torchvision:NAME`.
        weights: Name in the weight enum of that network.

    Raises:
        WeightsError: If there are none of that name, if they cannot be downloaded, or if they arrive damaged.
    """
    model = network.removeprefix(_PLACE)
    enum = torchvision.models.get_model_weights(model)
    if weights not in enum.__members__:
        raise WeightsError(
            f"torchvision has no weights {weights!r} for {model}.",
            f"Choose one of {', '.join(enum.__members__)}.",
        )
    try:
        state: dict[str, Any] = enum[weights].get_state_dict(progress=False, check_hash=True)
    except OSError as error:  # urllib's URLError is one
        raise WeightsError(
            f"The weights {weights} of torchvision's {model} cannot be downloaded: {described(error)}.",
            "Check the network; or download the file elsewhere and set teacher.weights to its path; or set "
            'teacher.weights = "none" to measure latency only.',
        ) from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:  # a hash that differs, or a damaged copy
        if is_of_memory(error):
            raise
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"The weights {weights} of torchvision's {model} arrived damaged ({type(error).__name__}).",
            f"Delete their file in {folder} and try again.",
        ) from error
    return state


def published_preprocessing(network: str, weights: str) -> Preprocessing | None:
    """How images become inputs for published weights; None if that is not known, as of a file.

    Args:
        network: As a recipe names it.
        weights: Likewise; of published ones, one that there is.
    """
    if not is_published(network, weights):
        return None
    enum = torchvision.models.get_model_weights(network.removeprefix(_PLACE))
    found = enum[weights].transforms()
    try:
        return Preprocessing(found.crop_size[0], found.resize_size[0], tuple(found.mean), tuple(found.std))
    except (AttributeError, TypeError, IndexError):  # its class is private to torchvision, and may change
        return None
