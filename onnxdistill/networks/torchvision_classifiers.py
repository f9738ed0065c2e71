"""torchvision's classifiers, built without weights, and the forms that their published weights come in."""

from __future__ import annotations

import re
from typing import Any

import torchvision
from torch import nn

CLASSIFIERS: list[str] = torchvision.models.list_models(torchvision.models)

# Heads that only training uses; torchvision's own loaders drop them as well.
AUXILIARY_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Names of before a full stop was forbidden in a module's name; the published files still have them.
OLD_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def build_classifier(model: str, num_classes: int) -> nn.Module:
    """A classifier of `CLASSIFIERS`, with random weights and without auxiliary heads."""
    extra: dict[str, bool] = {}
    if model in AUXILIARY_HEADS:
        # The published weights expect inputs in -1..1; with this the network makes them of ImageNet's normalisation.
        extra = {"aux_logits": False, "init_weights": False, "transform_input": True}
    network: nn.Module = torchvision.models.get_model(model, weights=None, num_classes=num_classes, **extra)
    return network


def rename_published(model: str, state: dict[str, Any]) -> None:
    """Changes a state dict of `model` in place as torchvision's own loader does."""
    for name in list(state):
        if name.startswith(AUXILIARY_HEADS.get(model, ())):
            del state[name]
        elif model.startswith("densenet") and OLD_DENSE_LAYER.match(name):
            state[OLD_DENSE_LAYER.sub(r"\1\2", name)] = state.pop(name)
