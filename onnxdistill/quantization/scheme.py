"""What an int8 model is made of, but for the ranges of its activations; and which of that may be fastest here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from onnxdistill.device.host import HostFacts, read_host
from onnxdistill.quantization.calibration import QUANTIZABLE
from onnxdistill.quantization.placement import float_beginning

Activations = Literal["uint8", "int8"]

# Processors with one of these add products of int8 in 32 bits; without, x86 saturates at 16 bits.
NON_SATURATING = frozenset({"AVX512-VNNI", "AVX-VNNI", "AMX-INT8"})

# What computes something and gains little by integers, or is a conversion to float and back.
_ELEMENTWISE = frozenset({"LeakyRelu", "Mul", "Resize", "Sigmoid", "Softmax", "Where"})
_OTHERS = frozenset({"ArgMax", "CumSum", "InstanceNormalization", "LayerNormalization", "TopK"})
_LAYERS_ONLY = QUANTIZABLE - _ELEMENTWISE - _OTHERS


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized.

    Attributes:
        activations: `uint8` or `int8`.
        per_channel: Whether weights have a scale for every output channel.
        weight_bits: 8; or 7, so that sums of two products do not saturate at 16 bits.
        operators: Types of nodes that work on integers.
        float_nodes: Names of nodes of these types that stay in float all the same.
        symmetric: Whether zero is the integer 0 in activations as well, and biases stay in float: TensorRT knows
            nothing else.
    """

    activations: Activations
    per_channel: bool = True
    weight_bits: Literal[7, 8] = 8
    operators: frozenset[str] = QUANTIZABLE
    float_nodes: frozenset[str] = frozenset()
    symmetric: bool = False

    def __str__(self) -> str:
        scales = "a scale for every channel" if self.per_channel else "one scale for each weight"
        text = f"{self.activations} activations, {self.weight_bits}-bit weights, {scales}"
        if self.symmetric:
            text += ", symmetric"
        if self.operators != QUANTIZABLE:
            text += ", layers only"
        if self.float_nodes:
            nodes = "node" if len(self.float_nodes) == 1 else "nodes"
            text += f", {len(self.float_nodes)} {nodes} in float"
        return text


def saturates(host: HostFacts) -> bool:
    """Whether a machine adds pairs of products of 8-bit integers in 16 bits, which the largest overflow."""
    return host.is_x86 and not NON_SATURATING & set(host.int8_features or ())


def usual_scheme(
    model: onnx.ModelProto, activations: Literal["auto", "uint8", "int8"], per_channel: bool, host: HostFacts
) -> Scheme:
    """What is fastest on most networks on a machine, by what was measured; see `candidates` for the rest.

    Args:
        model: Float and prepared.
        activations: `auto` for those that the machine's kernels take.
        per_channel: Whether weights have a scale for every output channel.
        host: The machine. Accuracy is measured on this one: where either saturates, weights have 7 bits, which come to
            the same on both.
    """
    chosen: Activations = ("uint8" if host.is_x86 else "int8") if activations == "auto" else activations
    beginning = float_beginning(model) if chosen == "uint8" and host.is_x86 else ()
    return Scheme(
        chosen, per_channel, 7 if saturates(host) or saturates(read_host()) else 8, float_nodes=frozenset(beginning)
    )


def candidates(
    model: onnx.ModelProto, activations: Literal["auto", "uint8", "int8"], per_channel: bool, host: HostFacts
) -> Iterator[Scheme]:
    """Schemes that may be faster than the usual one, which comes first. None is worse for accuracy but by chance.

    The usual scheme is right for the networks that it was found on; others have other layers, and other processors
    other kernels. So the beginning of the network is tried in int8 too; layers, and what only moves their values,
    without the functions between them; and the other kind of activations.
    """
    usual = usual_scheme(model, activations, per_channel, host)
    yield usual
    if usual.float_nodes:
        yield Scheme(usual.activations, per_channel, usual.weight_bits)
    types = {node.op_type for node in model.graph.node}
    if types & (QUANTIZABLE - _LAYERS_ONLY):
        yield Scheme(usual.activations, per_channel, usual.weight_bits, _LAYERS_ONLY, usual.float_nodes)
    if activations == "auto":
        other: Activations = "int8" if usual.activations == "uint8" else "uint8"
        yield Scheme(other, per_channel, usual.weight_bits)
