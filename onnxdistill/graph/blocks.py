"""Whole residual blocks: which can be left out, and how much each matters.

A block maps x to x + f(x), perhaps through an activation. Without f it is its shortcut alone, which computes nothing.
A narrower layer still has to be started; a layer that is gone doesn't, and on small networks that is most of the time.
Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", section 4.1: without one
of its blocks, a residual network still works.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from onnxdistill.graph.channels import trace
from onnxdistill.graph.cores import PREFIX
from onnxdistill.graph.rules.walk import module_of, operator_name
from onnxdistill.graph.standins import replaceable


def removable_blocks(network: nn.Module, example: Tensor, skip: Sequence[str] = ()) -> list[str]:
    """Paths of the modules that can be left out, in the order in which they run.

    Such a module gives `x`, or an activation of `x` that changes nothing on its inputs, as soon as its branch is
    silent. That is tried on the example, not only read off the graph.

    Args:
        network: In evaluation mode; not changed.
        example: An input `[N, ...]` with N > 1.
        skip: Patterns of names of modules that have to stay, with the blocks that they are in.

    Raises:
        NetworkError: If the network cannot be traced.
    """
    program = trace(network, example)
    sums = dict.fromkeys(
        module_of(node).removeprefix(PREFIX)
        for node in program.graph.nodes
        if node.op == "call_function" and operator_name(node) == "add" and len(node.all_input_nodes) == 2
    )
    modules = dict(network.named_modules())
    candidates = [
        name
        for name in sums
        if name and name in modules and _has_one_tensor(modules[name]) and not _holds(network, name, skip)
    ]
    shortcuts = [name for name in candidates if _is_shortcut(network, name, example)]
    return replaceable(network, shortcuts, example, lambda _block: nn.Identity())


def without_blocks(network: nn.Module, names: Sequence[str]) -> nn.Module:
    """Returns a copy in which these modules give back what they get."""
    shorter = copy.deepcopy(network)
    for name in names:
        shorter.set_submodule(name, nn.Identity())
    return shorter


def least_important_blocks(
    network: nn.Module, names: Sequence[str], count: int, damage: Callable[[nn.Module], float]
) -> list[str]:
    """The blocks whose absence hurts least, chosen one after the other.

    Of blocks that lie in each other, at most one goes.

    Args:
        network: Not changed.
        names: Blocks to choose from.
        count: How many go; at least one block of `names` stays.
        damage: Of a network without blocks; less is better.
    """
    gone: list[str] = []
    while len(gone) < min(count, len(names) - 1):
        rest = [name for name in names if not any(_one_in_the_other(name, other) for other in gone)]
        if not rest:
            break
        gone.append(min(rest, key=lambda name: damage(without_blocks(network, [*gone, name]))))
    return gone


def _holds(network: nn.Module, block: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns fits a block or something in it."""
    inside = (f"{block}.{name}".rstrip(".") for name, _ in network.get_submodule(block).named_modules())
    return any(fnmatchcase(name, pattern) for name in inside for pattern in patterns)


def _one_in_the_other(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _has_one_tensor(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) and not isinstance(module, nn.Sequential)


def _is_shortcut(network: nn.Module, name: str, example: Tensor) -> bool:
    """Whether a module gives back its input once its branches give zero.

    By the last layer of a branch; or by those of all parts, of which there are several where a block has two branches,
    as in transformers, or where what weighs the branch, as squeeze-and-excitation does, comes last.
    """
    block = network.get_submodule(name)
    last, ends = _last_layer(block), [_last_layer(part) for part in block.children()]
    return _gives_its_input(network, name, [last], example) or _gives_its_input(network, name, ends, example)


def _gives_its_input(network: nn.Module, name: str, silenced: Sequence[nn.Module | None], example: Tensor) -> bool:
    """Whether a module does so once some of its layers give zero."""
    known: dict[int, Any] = {}
    silent = copy.deepcopy(network, known).eval()
    block = silent.get_submodule(name)
    layers: list[nn.Module] = [known[id(layer)] for layer in silenced if layer is not None]
    if not layers:
        return False
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            nn.init.zeros_(parameter)
    given: list[Tensor | None] = []
    same: list[bool] = []

    def note(_module: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
        # A copy: the block may work in place. An identity takes one tensor and nothing else.
        match inputs, named:
            case (Tensor() as tensor,), {**rest} if not rest:
                given.append(tensor.clone())
            case _:
                given.append(None)

    def compare(_module: nn.Module, _inputs: object, result: object) -> None:
        before = given[-1]
        same.append(isinstance(result, Tensor) and before is not None and torch.equal(before, result))

    handles = [block.register_forward_pre_hook(note, with_kwargs=True), block.register_forward_hook(compare)]
    try:
        with torch.no_grad():
            silent(example.clone())
    finally:
        for handle in handles:
            handle.remove()
    return same == [True]


def _last_layer(block: nn.Module) -> nn.Module | None:
    """The layer with parameters that is written last in a block."""
    layers = [module for module in block.modules() if any(True for _ in module.parameters(recurse=False))]
    return layers[-1] if layers else None
