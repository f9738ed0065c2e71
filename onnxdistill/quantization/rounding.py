"""Rounding of weights up or down, whichever changes the outputs of their layer least.

The nearest integers are best for weights by themselves, not for W x: errors of weights whose inputs go together add up
or make up for each other. With H = E[x x^T], the mean squared error of an output is e^T H e for errors e of its
weights. Minimizing that over integers is what AdaRound does by training (Nagel et al. 2020, "Up or Down? Adaptive
Rounding for Post-Training Quantization"); Optimal Brain Quantization and GPTQ do it in one pass over the weights, each
rounded to nearest after the errors so far have been made up for (Frantar and Alistarh 2022, "Optimal Brain
Compression"; Frantar et al. 2023, "GPTQ"). GPTQ takes the inverse of H for that. With the Cholesky factor H = R^T R

    q_i = round(u_i + sum over j > i of R_ij / R_ii (u_j - q_j)),        i = d - 1, ..., 0

are the same integers for weights u in units of their scale, if GPTQ goes from the last weight to the first, without an
inverse (Chen et al. 2025, "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdistill.quantization.calibration import Feeds
from onnxdistill.quantization.layers import QuantizedLayer, find_layers, observe, with_integers

# Places where a layer looks at one sample: neighbouring ones of an image say much the same. Fewer, down to the second
# number, where a layer has so many inputs that they would take more multiplications than the third.
_POSITIONS, _FEWEST_POSITIONS, _MULTIPLICATIONS = 64, 8, 2**28
# Added to the diagonal of H, as a share of it: what was not seen is not zero. And more, the fewer x were seen for each
# of their elements.
_DAMPING, _SCARCITY = 0.01, 1.0
# For the matrices H of the layers that are looked at in one pass over the samples.
_BUDGET_BYTES = 2**28
# Values of inputs that are multiplied at once.
_PIECE = 2**23
# Weights of an output whose errors are made up for one by one, before all others get the sum of them.
_BLOCK = 64

Array = NDArray[np.float64]


def round_weights(
    quantized: onnx.ModelProto, prepared: onnx.ModelProto, batches: Callable[[], Iterable[Feeds]]
) -> onnx.ModelProto:
    """Rounds the weights of a quantized model anew. Scales and zero points stay, and so does the range of integers.

    The inputs x are those that a layer gets in the quantized model as it is given. On ResNet-20 with weights of 7 and 8
    bits, those of the float model and those behind layers that are rounded already made no difference; W x of the float
    model's x as the target, with inputs behind rounded layers, was 0.6 to 0.8 dB worse.

    `Conv` of any rank and groups, `Gemm` and `MatMul` with constant weights are rounded. As they are stay layers with
    another kind of scales than one for the tensor or for each output, with automatic padding, with weights that several
    layers share, with more than 5,792 weights for each output, and those whose inputs are not finite or always zero.
    For the x that are looked at, no output gets a larger error than it had.

    Args:
        quantized: In QDQ form, as ONNX Runtime's quantizer makes it of `prepared`. It is not changed.
        prepared: The float model.
        batches: Gives the samples, batch by batch, always the same ones; called once for every 256 MB of matrices H.

    Returns:
        The model with other integers in its weights.

    Raises:
        DataError: If there is no sample.
        ModelFileError: If the model does not run.
        UsageError: If an input is not what the model takes.
    """
    layers = [(layer, window) for layer in find_layers(quantized, prepared) if (window := window_of(layer)) is not None]
    changed: dict[str, NDArray[Any]] = {}
    for group in _groups(layers):
        moments = _moments(quantized, {window for _, window in group}, batches)
        for layer, window in group:
            rounded = _round_layer(layer, *moments[window])
            if rounded is not None:
                changed[layer.weight.name] = rounded
    return with_integers(quantized, changed)


def round_rows(weights: Array, moments: Array, low: int, high: int, damping: float) -> Array:
    """Integers q near weights u for which the error (u - q) H (u - q)^T is small; see the top of this module.

    The weights of the largest inputs come first, as in GPTQ: those that come last make up for all others.

    Args:
        weights: u, `[groups, outputs, inputs]`, in units of their scale.
        moments: H, `[groups, inputs, inputs]`, symmetric and positive semidefinite. Inputs with zeros only are
            always zero, and are rounded to nearest.
        low: The least integer.
        high: The largest integer.
        damping: Added to the diagonal of H, as a share of each of its elements, so that units of inputs do not matter.

    Returns:
        q, `[groups, outputs, inputs]`.
    """
    diagonal = np.einsum("gii->gi", moments)
    order = np.argsort(diagonal, axis=1, kind="stable")
    damped = np.array(np.take_along_axis(np.take_along_axis(moments, order[:, :, None], 1), order[:, None, :], 2))
    own = np.einsum("gii->gi", damped)
    own[...] = np.where(own > 0, own * (1 + damping), 1.0)
    factor = np.swapaxes(np.linalg.cholesky(damped), 1, 2)
    feedback = factor / np.einsum("gii->gi", factor)[:, :, None]
    wanted = np.take_along_axis(weights, order[:, None, :], 2)
    rounded, errors = np.empty_like(wanted), np.zeros_like(wanted)
    for stop in range(wanted.shape[2], 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        behind = errors[:, :, stop:] @ np.swapaxes(feedback[:, start:stop, stop:], 1, 2)
        for i in range(stop - 1, start - 1, -1):
            within = (errors[:, :, i + 1 : stop] @ feedback[:, i, i + 1 : stop, None])[:, :, 0]
            rounded[:, :, i] = np.clip(np.rint(wanted[:, :, i] + behind[:, :, i - start] + within), low, high)
            errors[:, :, i] = wanted[:, :, i] - rounded[:, :, i]
    result = np.empty_like(rounded)
    np.put_along_axis(result, order[:, None, :], rounded, 2)
    return result


@dataclass(frozen=True)
class Window:
    """What a layer sees of its input at once, and where. Layers that see the same have the same H.

    A product of matrices is a convolution along one dimension, with a kernel of one position, once channels come first.

    Attributes:
        input: Name of the tensor.
        channels_last: Whether it is [..., C] instead of [N, C, ...].
        groups: Of channels.
        channels: In a group.
        kernel: Positions in every dimension.
        strides: Between places.
        pads: Before every dimension, then behind.
        dilations: Between positions in the kernel.
    """

    input: str
    channels_last: bool
    groups: int
    channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def size(self) -> int:
        """Inputs of one output."""
        return self.channels * math.prod(self.kernel)

    def moments(self, tensor: NDArray[Any], generator: np.random.Generator) -> tuple[NDArray[np.float32], int]:
        """The sum of x x^T, `[groups, size, size]`, over places chosen at random, the same ones in all samples.

        Args:
            tensor: The input, of some samples.
            generator: Chooses the places.

        Returns:
            The sum, and how many x it is of.
        """
        images = tensor.astype(np.float32, copy=False)
        if self.channels_last:
            samples = len(images) if images.ndim > 2 else -1
            images = np.swapaxes(images.reshape(samples, math.prod(images.shape[1:-1]), self.channels), 1, 2)
        rank = len(self.kernel)
        images = np.pad(images, [(0, 0), (0, 0), *zip(self.pads[:rank], self.pads[rank:], strict=True)])
        index = self._look(images.shape[2:], generator)
        where: tuple[Any, ...] = (slice(None), slice(None), *index)
        step = max(1, _PIECE // (len(index[0]) * self.groups * self.size))
        total = np.zeros((self.groups, self.size, self.size), np.float32)
        for start in range(0, len(images), step):
            seen = images[start : start + step][where]
            rows = seen.reshape(len(seen), self.groups, self.channels, len(index[0]), -1).transpose(1, 0, 3, 2, 4)
            rows = rows.reshape(self.groups, -1, self.size)
            total += np.swapaxes(rows, 1, 2) @ rows
        return total, len(images) * len(index[0])

    def _look(self, sizes: tuple[int, ...], generator: np.random.Generator) -> list[NDArray[np.intp]]:
        """Where to look in a padded image: for every dimension, indices that broadcast to [places, *kernel]."""
        along = list(zip(sizes, self.kernel, self.strides, self.dilations, strict=True))
        counts = [(size - (kernel - 1) * dilation - 1) // stride + 1 for size, kernel, stride, dilation in along]
        wanted = max(_FEWEST_POSITIONS, min(_POSITIONS, _MULTIPLICATIONS // (self.groups * self.size**2)))
        places = np.unravel_index(generator.permutation(math.prod(counts))[:wanted], counts)
        index = []
        for dimension, (_, kernel, stride, dilation) in enumerate(along):
            shape = [-1, *(1 for _ in along)]
            positions = places[dimension].reshape(shape) * stride
            shape[0], shape[dimension + 1] = 1, -1
            index.append(positions + np.arange(kernel).reshape(shape) * dilation)
        return index


def window_of(layer: QuantizedLayer) -> Window | None:
    """What a layer sees; None if it isn't one that can be rounded."""
    shape, attributes = layer.weight.values.shape, layer.attributes
    if layer.shared or attributes.get("transA", 0) or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    if layer.op_type == "Conv":
        kernel = shape[2:]
        strides, dilations = (tuple(attributes.get(name, (1,) * len(kernel))) for name in ("strides", "dilations"))
        pads = tuple(attributes.get("pads", (0,) * 2 * len(kernel)))
        groups = attributes.get("group", 1)
        window = Window(layer.quantized_input, False, groups, shape[1], kernel, strides, pads, dilations)
    elif layer.op_type in ("Gemm", "MatMul") and len(shape) == 2:
        channels = shape[1] if attributes.get("transB", 0) else shape[0]
        window = Window(layer.quantized_input, True, 1, channels, (1,), (1,), (0, 0), (1,))
    else:
        return None
    return window if _bytes(window) <= _BUDGET_BYTES else None


def _bytes(window: Window) -> int:
    """Of H."""
    return 8 * window.groups * window.size**2


def _groups(layers: Iterable[tuple[QuantizedLayer, Window]]) -> Iterator[list[tuple[QuantizedLayer, Window]]]:
    """Layers whose matrices H fit the budget together."""
    group: list[tuple[QuantizedLayer, Window]] = []
    for layer, window in layers:
        if sum(map(_bytes, {window, *(other for _, other in group)})) > _BUDGET_BYTES:
            yield group
            group = []
        group.append((layer, window))
    if group:
        yield group


def _moments(
    model: onnx.ModelProto, windows: Collection[Window], batches: Callable[[], Iterable[Feeds]]
) -> dict[Window, tuple[Array, int]]:
    """H of every window, times the number of x that were seen, and this number."""
    seen: Counter[Window] = Counter()
    sums = {window: np.zeros((window.groups, window.size, window.size)) for window in windows}
    names = sorted({window.input for window in windows})
    for number, tensors in enumerate(observe(model, names, batches())):
        for window, total in sums.items():
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out later
                part, count = window.moments(tensors[window.input], np.random.default_rng(number))
                total += part
            seen[window] += count
    return {window: (total, seen[window]) for window, total in sums.items()}


def _round_layer(layer: QuantizedLayer, moments: Array, seen: int) -> NDArray[Any] | None:
    """Other integers for a layer; None if it has to stay as it is."""
    scale, zero_point, nearest = (
        as_rows(layer, np.broadcast_to(numbers, layer.weight.values.shape))
        for numbers in (layer.weight.scale, layer.weight.zero_point, layer.weight.values)
    )
    if np.any(scale != scale[:, :, :1]) or not np.all(scale > 0) or not np.isfinite(moments).all():
        return None
    weights = as_rows(layer, layer.float_weight).astype(np.float64) / scale + zero_point
    if not np.isfinite(weights).all():
        return None
    low, high = layer.weight.bounds()
    rounded = round_rows(weights, moments, low, high, _DAMPING + _SCARCITY * moments.shape[1] / max(1, seen))
    better = _squared_errors(weights - rounded, moments) < _squared_errors(weights - nearest, moments)
    return _as_weight(layer, np.where(better[:, :, None], rounded, nearest).astype(layer.weight.values.dtype))


def _squared_errors(errors: Array, moments: Array) -> Array:
    squared: Array = np.einsum("goi,goi->go", errors @ moments, errors)
    return squared


def as_rows(layer: QuantizedLayer, array: NDArray[Any]) -> NDArray[Any]:
    """What has the shape of the weight as `[groups, outputs, inputs]`."""
    if layer.op_type == "Conv":
        return array.reshape(layer.attributes.get("group", 1), -1, math.prod(array.shape[1:]))
    return (array if layer.attributes.get("transB", 0) else array.T)[np.newaxis]


def _as_weight(layer: QuantizedLayer, rows: NDArray[Any]) -> NDArray[Any]:
    transposed = layer.op_type != "Conv" and not layer.attributes.get("transB", 0)
    return rows[0].T if transposed else rows.reshape(layer.weight.values.shape)
