"""The module that computes what a QDQ ONNX file means, can be trained, and can be written again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from onnxdistill.fakequant.graph import Graph
from onnxdistill.fakequant.program import bias_scale, compile_graph
from onnxdistill.fakequant.roles import Bias, Roles, Weight, WeightBits, find_roles
from onnxdistill.fakequant.rounding import Levels, dequantize, integers_of
from onnxdistill.fakequant.scales import Scale
from onnxdistill.fakequant.writing import put_back
from onnxdistill.onnxfile import save_checked

# That ONNX Runtime's quantizer puts behind the name of a float weight.
_SUFFIX = "_quantized"


class FakeQuantized(nn.Module):
    """A QDQ model as a module: every Q/DQ pair, weight and bias is rounded in float32 exactly as in the file.

    Weights, biases and scales are parameters; zero points stay. Gradients pass rounding straight through, those of
    scales are of Esser et al. 2020, "Learned Step Size Quantization". Training and evaluation mode are the same. It
    can be copied, pickled and saved by its state dict, which another one made from the same file loads.

    Batch norms are inside the layers before them, and nothing else keeps activations in bounds: it learns at smaller
    rates than the float network. ResNet-20 diverges by SGD at 0.003, unless gradients are clipped to a norm of 1; AdamW
    at 0.0001 to 0.001 needs no clipping.

    What comes out differs from ONNX Runtime's outputs as far as sums in another order do; a value at the border between
    two integers may then be rounded to the other one.

    Args:
        model: A quantized model with its weights inside.
        floats: Weights that were quantized, by the names that they had. One is taken where it rounds to the integer in
            the file, so that training starts from it and the module still computes what the file does.
        weight_bits: Of weights, 7 or 8: integers stay between -64 and 64, or -127 and 127; None for 7 if that holds all
            that are in the file.
        train_scales: Whether scales are trained.

    Raises:
        UnsupportedOperatorError: If the graph has an operator that cannot be trained here.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        floats: dict[str, NDArray[np.float32]] | None = None,
        *,
        weight_bits: WeightBits | None = None,
        train_scales: bool = True,
    ) -> None:
        super().__init__()
        graph = Graph(model)
        self._roles = find_roles(graph, weight_bits)
        self._program, self._constants = compile_graph(graph, self._roles)
        self._model = model.SerializeToString()
        names = (*self._roles.weights, *self._roles.biases, *self._roles.floats)
        self._weight_keys = _keys(names)
        self._scale_keys = _keys(self._roles.scales)
        start = _starting_values(graph, self._roles, floats or {})
        self.weights = nn.ParameterDict({key: nn.Parameter(start[name]) for name, key in self._weight_keys.items()})
        scales = {key: Scale(torch.tensor(graph.arrays[name])) for name, key in self._scale_keys.items()}
        self.scales = nn.ModuleDict(scales).requires_grad_(train_scales)

    @classmethod
    def from_file(
        cls,
        path: Path,
        float_path: Path | None = None,
        *,
        weight_bits: WeightBits | None = None,
        train_scales: bool = True,
    ) -> FakeQuantized:
        """Reads a file.

        Args:
            path: A QDQ model.
            float_path: The float model that it was made from: training then starts from the weights before rounding.
            weight_bits: See the class.
            train_scales: See the class.

        Raises:
            UnsupportedOperatorError: If the graph has an operator that cannot be trained here.
        """
        floats: dict[str, NDArray[np.float32]] = {}
        if float_path is not None:
            tensors = onnx.load(float_path).graph.initializer
            floats = {t.name: numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.FLOAT}
        return cls(onnx.load(path), floats, weight_bits=weight_bits, train_scales=train_scales)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Computes the outputs of the graph: one tensor, or a tuple of several.

        Args:
            inputs: In the order of the graph's inputs, of any batch size that it takes.
        """
        values = self._values()
        values.update(zip(self._program.inputs, inputs, strict=True))
        for step in self._program.steps:
            step.apply(values)
        outputs = tuple(values[name] for name in self._program.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def write(self, path: Path) -> None:
        """Writes the model as it is now: the file that was read, with trained integers, biases and scales.

        Raises:
            OSError: If the file cannot be written.
        """
        model = onnx.load_model_from_string(self._model)
        with torch.no_grad():
            put_back(model, self._roles, self._values())
        save_checked(model, path)

    def extra_repr(self) -> str:
        """How many steps there are."""
        return f"steps={len(self._program.steps)}"

    def _values(self) -> dict[str, Tensor]:
        """What is there before the first step: constants, and what is trained."""
        values = dict(self._constants)
        values.update((name, self.weights[key]) for name, key in self._weight_keys.items())
        values.update((name, self.scales[key]()) for name, key in self._scale_keys.items())
        return values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FakeQuantized:
        # Constants are no buffers, since averages of weights are taken of buffers as well, and some are infinite.
        self._constants = {name: fn(constant) for name, constant in self._constants.items()}
        applied: FakeQuantized = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return applied


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Names of parameters for those of initializers: torch allows no dots in them, nor what its containers have."""
    taken = {"", *dir(nn.ParameterDict()), *dir(nn.ModuleDict())}
    keys: dict[str, str] = {}
    for name in names:
        key = name.removesuffix(_SUFFIX).replace(".", "/")
        while key in taken:
            key += "_"
        taken.add(key)
        keys[name] = key
    return keys


def _starting_values(graph: Graph, roles: Roles, floats: dict[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """Real numbers for weights and biases: those of the file, or the float weights that these were rounded from."""

    def scale(name: str) -> Tensor:
        return torch.tensor(graph.arrays[name])

    start = {name: torch.tensor(graph.arrays[name]) for name in roles.floats}
    scales = {name: scale(weight.scale) for name, weight in roles.weights.items()}
    for name, bias in roles.biases.items():
        scales[name] = bias_scale(scale(bias.input_scale), scale(bias.weight_scale))
    quantized: dict[str, Weight | Bias] = {**roles.weights, **roles.biases}
    for name, role in quantized.items():
        integers = torch.tensor(graph.arrays[name]).float()
        unrounded = floats.get(name.removesuffix(_SUFFIX))
        start[name] = _unrounded(integers, scales[name], role.levels, unrounded)
    return start


def _unrounded(integers: Tensor, scale: Tensor, levels: Levels, unrounded: NDArray[np.float32] | None) -> Tensor:
    """Real numbers that round to these integers: given ones wherever they do, else the middle of what does."""
    middle = dequantize(integers, scale, levels)
    if unrounded is None or unrounded.shape != tuple(integers.shape):
        return middle
    given = torch.tensor(unrounded)
    return torch.where(integers_of(given, scale, levels) == integers - levels.zero_point, given, middle)
