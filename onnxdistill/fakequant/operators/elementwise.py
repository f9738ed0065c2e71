"""Rules of operators that work value by value, and of Softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxdistill.fakequant.node import Node, Operation

_WITHOUT_ATTRIBUTES: Mapping[str, Operation] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Neg": torch.neg,
    "Equal": torch.eq,
    "And": torch.logical_and,
    "Not": torch.logical_not,
    "Where": torch.where,
}


def without_attributes(node: Node) -> Operation:
    """What is one function of torch."""
    return _WITHOUT_ATTRIBUTES[node.op_type]


def divide(_node: Node) -> Operation:
    """Div."""
    return _divide


def _divide(a: Tensor, b: Tensor) -> Tensor:
    # Sizes are integers and stay integers.
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def modulo(node: Node) -> Operation:
    """Mod."""
    return torch.fmod if node.get("fmod", 0) else torch.remainder


def clip(_node: Node) -> Operation:
    """Clip."""
    return _clip


def _clip(x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
    return x if least is None and most is None else x.clamp(least, most)


def leaky_relu(node: Node) -> Operation:
    """LeakyRelu."""
    return partial(F.leaky_relu, negative_slope=node.get("alpha", 0.01))


def hard_sigmoid(node: Node) -> Operation:
    """HardSigmoid."""
    return partial(_hard_sigmoid, alpha=node.get("alpha", 0.2), beta=node.get("beta", 0.5))


def _hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def hard_swish(_node: Node) -> Operation:
    """HardSwish, x times the hard sigmoid of x with a slope of 1/6."""
    return _hard_swish


def _hard_swish(x: Tensor) -> Tensor:
    return x * _hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def gelu(node: Node) -> Operation:
    """Gelu."""
    return partial(F.gelu, approximate=node.get("approximate", "none"))


def softmax(node: Node) -> Operation:
    """Softmax."""
    return partial(torch.softmax, dim=node.get("axis", -1))


RULES: dict[str, Callable[[Node], Operation]] = {
    **dict.fromkeys(_WITHOUT_ATTRIBUTES, without_attributes),
    "Div": divide,
    "Mod": modulo,
    "Clip": clip,
    "LeakyRelu": leaky_relu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Gelu": gelu,
    "Softmax": softmax,
}
