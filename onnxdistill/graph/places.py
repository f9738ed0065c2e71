"""Where layers run in a network: in which order, which batch norm follows, and which residual branch they end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Place:
    """Where a layer runs.

    Attributes:
        layer: Its name.
        norm: Name of the batch norm that takes its outputs as they are; empty if none does.
        block: Name of the innermost module that gives the sum, or the ReLU of the sum, of what it gets and what the
            layer with its norm gives; empty if there is none.
    """

    layer: str
    norm: str
    block: str


def places_of(network: nn.Module, layers: Sequence[str], example: Tensor) -> list[Place]:
    """Where those of the layers run that run once, in their order.

    What is a residual block is tried on the example, not read off the code.

    Args:
        network: In evaluation mode; not changed.
        layers: Names of modules.
        example: One input `[1, ...]`.
    """
    norms = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    blocks = {outer for name in layers for outer in _around(name)}
    run = _Run(network, {*layers, *norms, *blocks}, example)
    order = [name for name in run.order if name in set(layers)]
    places = []
    for name in order:
        norm = run.norm_after(name, norms)
        places.append(Place(name, norm, run.block_around(name, norm)))
    return places


def largest_result(network: nn.Module, example: Tensor) -> int:
    """Values of the largest tensor that a network makes on its way, for an input `[1, ...]`."""
    results = _Results()
    with results, torch.no_grad():
        network(example.clone())
    return results.largest


@contextmanager
def entered(network: nn.Module, see: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Shows what modules get, just before they run."""

    def hook(show: Callable[[Tensor], None], _module: nn.Module, received: tuple[Any, ...]) -> None:
        show(received[0])

    handles = [network.get_submodule(name).register_forward_pre_hook(partial(hook, show)) for name, show in see.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _around(name: str) -> list[str]:
    """The modules that a module lies in, the innermost first; the network itself is none."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


class _Results(TorchFunctionMode):
    """Looks at what every function of PyTorch gives, whichever module or code calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 1

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


class _Run:
    """What modules have got and given when a network ran, and the order in which those were done that ran once."""

    def __init__(self, network: nn.Module, names: set[str], example: Tensor) -> None:
        # As they were: an activation may overwrite them. And the tensors themselves, which tell what went where.
        self._got: dict[str, tuple[Tensor, Tensor]] = {}
        self._gave: dict[str, tuple[Tensor, Tensor]] = {}
        calls: Counter[str] = Counter()

        def before(name: str, _module: nn.Module, received: tuple[Any, ...], named: dict[str, Any]) -> None:
            if len(received) == 1 and isinstance(received[0], Tensor) and not named:
                self._got[name] = received[0], received[0].clone()

        def after(name: str, _module: nn.Module, _received: tuple[Any, ...], result: Any) -> None:
            calls[name] += 1
            if isinstance(result, Tensor):
                self._gave[name] = result, result.clone()

        handles = []
        for name in names:
            module = network.get_submodule(name)
            handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, name)))
        try:
            with torch.no_grad():
                network(example.clone())
        finally:
            for handle in handles:
                handle.remove()
        self.order = [name for name in self._gave if calls[name] == 1 and name in self._got]

    def norm_after(self, layer: str, norms: Sequence[str]) -> str:
        result, then = self._gave[layer]
        found = [
            name
            for name in norms
            if name in self.order and self._got[name][0] is result and _same(self._got[name][1], then)
        ]
        return found[0] if len(found) == 1 else ""

    def block_around(self, layer: str, norm: str) -> str:
        _, branch = self._gave[norm or layer]
        for name in _around(layer):
            if name not in self.order or self._got[name][1].shape != branch.shape:
                continue
            total, result = self._got[name][1] + branch, self._gave[name][1]
            if _same(total, result) or _same(total.relu(), result):
                return name
        return ""


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-6)
