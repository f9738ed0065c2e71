"""What training has changed, put into the ONNX model that it came from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor

from onnxdistill.fakequant.program import bias_scale
from onnxdistill.fakequant.roles import Roles
from onnxdistill.fakequant.rounding import Levels, integers_of

# A share of a large integer: two roundings of float32.
_INDISTINGUISHABLE = 2.0**-22


def put_back(model: onnx.ModelProto, roles: Roles, values: Mapping[str, Tensor]) -> None:
    """Writes trained weights, biases and scales into the initializers that they were read from; types stay.

    Args:
        model: As it was read; changed in place.
        roles: What is trained in it.
        values: Real numbers for all that is trained, and scales, by the names of the initializers.
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in (*roles.floats, *roles.scales):
        _fill(initializers[name], values[name])
    for name, weight in roles.weights.items():
        _fill(initializers[name], _integers(values[name], values[weight.scale], weight.levels))
    for name, bias in roles.biases.items():
        scale = bias_scale(values[bias.input_scale], values[bias.weight_scale])
        _fill(initializers[bias.scale], scale)
        _fill(initializers[name], _integers(values[name], scale, bias.levels))


def _integers(values: Tensor, scale: Tensor, levels: Levels) -> Tensor:
    return integers_of(values, scale, levels).double() + levels.zero_point


def _fill(initializer: onnx.TensorProto, values: Tensor) -> None:
    before = numpy_helper.to_array(initializer)
    array = values.detach().cpu().numpy().reshape(before.shape).astype(before.dtype)
    if before.dtype == np.int32:
        # Where float32 cannot tell integers of this size apart, they have not changed.
        near = np.abs(array.astype(np.int64) - before) <= np.abs(before.astype(np.int64)) * _INDISTINGUISHABLE
        array = np.where(near, before, array)
    initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
