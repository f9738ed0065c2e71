"""Saturation in 16 bits: what int8 layers compute on x86-64 processors without VNNI, and where that is wrong.

Without VNNI, ONNX Runtime multiplies uint8 activations by int8 weights with `vpmaddubsw`, which adds two neighbouring
products in signed 16 bits, saturates, and is widened to 32 bits only then. 2 * 255 * 127 = 64,770 does not fit, so that
the same file has other answers than on a processor with VNNI (onnxruntime#5849, #14642). Weights of 7 bits always fit:
2 * 255 * 64 = 32,640.

Neighbours are the products 2i and 2i + 1 of a sum, whatever the number of rows and columns, the kernel (AVX2,
AVX512BW) and the way to it. A matrix product adds along K. A convolution adds over the positions of its kernel, and
within one over the channels of the group; where their number is odd, pairs reach over to the next position. These
layers are exact:

- depthwise convolutions with one output for each channel, whose kernels add in 32 bits;
- layers of int8 activations, or of uint8 weights. But int8 activations become uint8 ones as a rule: where a
  `QuantizeLinear` has a single reader, ONNX Runtime adds 128 to them. Layers of all others it computes in float.

ONNX Runtime 1.32 agrees with this description bit by bit, with the kernels for AVX2 (the tests run them) and with those
for AVX512BW: in all 203 layers of six networks, among them MobileNetV3-small and RegNet, in 6.7 million values. Its own
way out, the session option `session.x64quantprecision`, is uint8 weights: exact and slower, with VNNI too, where
ResNet-56 for CIFAR-10 takes at least twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from onnxdistill.errors import DataError
from onnxdistill.quantization.calibration import Feeds
from onnxdistill.quantization.integergraph import as_run, find_integer_layers, layers_of, open_exact
from onnxdistill.quantization.pairsums import IntegerLayer, Integers, excess_of


@dataclass(frozen=True)
class Saturation:
    """How often a layer saturates on given inputs, and what that does to its outputs.

    Attributes:
        sums: Sums of two products that were computed.
        saturated: How many of them left 16 bits.
        outputs: Values that the layer returned.
        changed: How many of them are wrong.
        relative_error: Root of the mean square of what is wrong over that of the exact outputs, without the bias.
    """

    sums: int
    saturated: int
    outputs: int
    changed: int
    relative_error: float


def saturating_layers(model: onnx.ModelProto) -> dict[str, float]:
    """Which layers can saturate where there is no VNNI, for some input.

    Args:
        model: Quantized statically, by Q/DQ pairs or integer operators.

    Returns:
        The share of the pairs of weights that can, by the names of the layers. Empty: a proof that no sum ever
        saturates, so that answers are those of a processor with VNNI.

    Raises:
        ModelFileError: If ONNX Runtime cannot load the model, or if a layer is quantized dynamically.
    """
    shares = {layer.name: layer.share_saturating() for layer in find_integer_layers(model)}
    return {name: share for name, share in shares.items() if share > 0}


def count_saturation(model: onnx.ModelProto, batches: Iterable[Feeds]) -> dict[str, Saturation]:
    """How often layers saturate on given inputs, every layer by itself: its own inputs are exact.

    Args:
        model: Quantized statically, by Q/DQ pairs or integer operators.
        batches: Inputs by name; read once. A batch is in memory with the inputs of all layers that can saturate.

    Returns:
        By the names of the layers that can saturate; not of those in branches and loops.

    Raises:
        DataError: If there is no batch.
        ModelFileError: If ONNX Runtime cannot load the model, or if a layer is quantized dynamically.
        UsageError: If an input is not what the model takes.
    """
    running = as_run(model)
    layers = [layer for layer in layers_of(running) if layer.top_level and layer.share_saturating() > 0]
    if not layers:
        return {}
    counts = {layer.name: _Count(layer) for layer in layers}
    session = open_exact(running, layers)
    seen = False
    for feeds in batches:
        seen = True
        tensors = {**feeds, **session.run(feeds)}
        for layer in layers:
            counts[layer.name].add(tensors[layer.activation], tensors.get(layer.weight))
    if not seen:
        raise DataError("There is no sample to count saturation on.", "Give at least one.")
    return {name: count.result() for name, count in counts.items()}


class _Count:
    """What `Saturation` holds, while it is counted."""

    def __init__(self, layer: IntegerLayer) -> None:
        self._layer = layer
        self._sums = self._saturated = self._outputs = self._changed = 0
        self._wrong = self._all = 0.0

    def add(self, activations: Integers, weights: Integers | None) -> None:
        layer = self._layer
        for left, right in layer.products(activations, layer.known(weights)):
            taken, saturated = excess_of(left, right)
            scale = layer.over_columns(layer.weight_scale, right)
            self._sums += taken.size * (left.shape[2] // 2)
            self._saturated += saturated
            self._outputs += taken.size
            self._changed += int(np.count_nonzero(taken))
            self._wrong += float(np.square(taken * scale).sum())
            self._all += float(np.square(layer.exact(left, right) * scale).sum())

    def result(self) -> Saturation:
        error = math.sqrt(self._wrong / self._all) if self._all else math.inf if self._wrong else 0.0
        return Saturation(self._sums, self._saturated, self._outputs, self._changed, error)
