"""Layers inside the student that follow the same layers inside the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from onnxdistill.errors import RecipeError
from onnxdistill.graph.losses import attention_loss, hint_loss
from onnxdistill.recipe import FeaturesTable


def check_layers(network: nn.Module, layers: Sequence[str], whose: str) -> None:
    """Refuses names of layers that a network does not have.

    Raises:
        RecipeError: It names the network's outer layers.
    """
    names = [name for name, _ in network.named_modules() if name]
    for layer in layers:
        if layer not in names:
            outer = [name for name in names if "." not in name]
            raise RecipeError(
                f"distill.features.layers: the {whose} has no layer {layer!r}.",
                f"Its outer layers are {', '.join(outer)}; an inner one is written with dots.",
            )


class _Tap:
    """Keeps what layers returned last."""

    def __init__(self, network: nn.Module, layers: Sequence[str], whose: str) -> None:
        self.seen: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self.handles: list[RemovableHandle] = []
        self._whose = whose
        check_layers(network, layers, whose)
        modules = dict(network.named_modules())
        for layer in layers:
            self.handles.append(modules[layer].register_forward_hook(self._keeper(layer)))

    def _keeper(self, layer: str) -> Any:  # a hook
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not output.is_inference():  # validation needs no comparing
                self.seen[layer], self._versions[layer] = output, output._version

        return keep

    def taken(self, layer: str) -> Tensor:
        """What the layer returned in this pass.

        Raises:
            RecipeError: If it was not called.
        """
        if layer not in self.seen:
            raise RecipeError(
                f"distill.features.layers: {layer!r} of the {self._whose} is not called in every pass, or returns no "
                "tensor.",
                "Name another layer.",
            )
        return self.seen[layer]

    def is_changed(self, layer: str) -> bool:
        """Whether something has written into what the layer returned."""
        return self.seen[layer]._version != self._versions[layer]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


class Follower(nn.Module):
    """A student whose layers are compared with the teacher's; calling it is calling the student.

    Where the student's layer is narrower, an adapter that is trained with it maps its channels to the teacher's: a
    1x1 convolution, or a linear layer for `[B, tokens, channels]` (Romero et al. 2014, "FitNets", section 2.2).

    Args:
        student: Its layers get hooks, until `close`.
        teacher: Likewise.
        table: Which layers, and how they are compared.
        example: An input `[B, ...]`, to see the layers' shapes.

    Attributes:
        weight: Of `loss`, in the loss of a step.

    Raises:
        RecipeError: If a layer is missing, gives no tensor, or one of another size.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, table: FeaturesTable, example: Tensor) -> None:
        super().__init__()
        self.student = student
        self.weight = table.weight
        self._table = table
        self._ours = _Tap(student, table.layers, "student")
        self._theirs = _Tap(teacher, table.layers, "teacher")
        self.adapters = nn.ModuleDict()
        was_training = student.training
        with torch.no_grad():
            student.eval()(example)
            teacher(example)
        student.train(was_training)
        for layer in table.layers:
            self._fit(layer)

    def forward(self, inputs: Tensor) -> Any:
        """What the student returns; its layers' outputs are adapted on the way, so that adapters train with it."""
        self._ours.seen.clear()
        output = self.student(inputs)
        self._adapted = {layer: self._adapter(layer)(self._ours.taken(layer)) for layer in self._table.layers}
        return output

    def loss(self) -> Tensor:
        """The mean over the layers, of what student and teacher computed last."""
        compare = {"hint": hint_loss, "attention": attention_loss}[self._table.loss]
        pairs = [(self._adapted[layer].float(), self._theirs.taken(layer).float()) for layer in self._table.layers]
        self._theirs.seen.clear()
        return torch.stack([compare(ours, theirs) for ours, theirs in pairs]).mean()

    def close(self) -> None:
        """Takes the hooks off both networks."""
        self._ours.close()
        self._theirs.close()

    def _fit(self, layer: str) -> None:
        ours, theirs = self._ours.taken(layer), self._theirs.taken(layer)
        if self._ours.is_changed(layer) or self._theirs.is_changed(layer):
            raise RecipeError(
                f"distill.features.layers: what follows {layer!r} writes into what it returns, as an in-place "
                "activation does.",
                "Name the layer that follows, or the block around it.",
            )
        if ours.ndim < 2 or theirs.ndim < 2:
            raise RecipeError(f"distill.features.layers: {layer!r} returns no batch of vectors.", "Name another layer.")
        if self._table.loss == "attention" and (ours.ndim != 4 or theirs.ndim != 4):
            raise RecipeError(
                f"distill.features.layers: {layer!r} returns {list(theirs.shape)}, and attention maps are made of "
                "[images, channels, height, width].",
                'Name a layer of images, or set distill.features.loss = "hint".',
            )
        axis = 1 if theirs.ndim == 4 else -1
        places = [tuple(tensor.movedim(axis, -1).shape[:-1]) for tensor in (ours, theirs)]
        if places[0] != places[1]:
            raise RecipeError(
                f"distill.features.layers: {layer!r} returns {list(ours.shape)} in the student and "
                f"{list(theirs.shape)} in the teacher; all but the channels have to agree, which are the second "
                "dimension of images, and else the last one.",
                "Name another layer.",
            )
        widths = ours.shape[axis], theirs.shape[axis]
        if self._table.loss == "hint" and widths[0] != widths[1]:
            adapter = nn.Conv2d(*widths, 1) if theirs.ndim == 4 else nn.Linear(*widths)
            self.adapters[_key(layer)] = adapter.to(theirs.device)

    def _adapter(self, layer: str) -> nn.Module:
        return self.adapters[_key(layer)] if _key(layer) in self.adapters else nn.Identity()


def _key(layer: str) -> str:
    # A dot would name a module inside another, and some names are those of methods.
    return f"at {layer.replace('.', '/')}"
