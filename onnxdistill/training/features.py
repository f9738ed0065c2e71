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


class _Tap:
    """Keeps what layers returned last."""

    def __init__(self, network: nn.Module, layers: Sequence[str], whose: str) -> None:
        self.seen: dict[str, Tensor] = {}
        self.handles: list[RemovableHandle] = []
        modules = dict(network.named_modules())
        for layer in layers:
            if layer not in modules or layer == "":
                known = [name for name, module in modules.items() if name and "." not in name]
                raise RecipeError(
                    f"distill.features.layers: the {whose} has no layer {layer!r}.",
                    f"Its outer layers are {', '.join(known)}; an inner one is written with dots.",
                )
            self.handles.append(modules[layer].register_forward_hook(self._keeper(layer)))

    def _keeper(self, layer: str) -> Any:  # a hook
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                self.seen[layer] = output

        return keep

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

    Raises:
        RecipeError: If a layer is missing, gives no tensor, or one of another size.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, table: FeaturesTable, example: Tensor) -> None:
        super().__init__()
        self.student = student
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
        output = self.student(inputs)
        self._adapted = {layer: self._adapter(layer)(self._ours.seen[layer]) for layer in self._table.layers}
        return output

    def loss(self) -> Tensor:
        """The mean over the layers, of what student and teacher computed last."""
        compare = {"hint": hint_loss, "attention": attention_loss}[self._table.loss]
        pairs = [(self._adapted[layer].float(), self._theirs.seen[layer].float()) for layer in self._table.layers]
        return torch.stack([compare(ours, theirs) for ours, theirs in pairs]).mean()

    def close(self) -> None:
        """Takes the hooks off both networks."""
        self._ours.close()
        self._theirs.close()

    def _fit(self, layer: str) -> None:
        missing = [who for who, tap in (("student", self._ours), ("teacher", self._theirs)) if layer not in tap.seen]
        if missing:
            raise RecipeError(
                f"distill.features.layers: {layer!r} of the {missing[0]} is never called, or returns no tensor.",
                "Name another layer.",
            )
        ours, theirs = self._ours.seen[layer], self._theirs.seen[layer]
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
                f"{list(theirs.shape)} in the teacher; all but the channels have to agree.",
                "Name another layer.",
            )
        widths = ours.shape[axis], theirs.shape[axis]
        if self._table.loss == "hint" and widths[0] != widths[1]:
            adapter = nn.Conv2d(*widths, 1) if theirs.ndim == 4 else nn.Linear(*widths)
            self.adapters[_key(layer)] = adapter

    def _adapter(self, layer: str) -> nn.Module:
        return self.adapters[_key(layer)] if _key(layer) in self.adapters else nn.Identity()


def _key(layer: str) -> str:
    return layer.replace(".", "/")  # a dot would name a module inside another
