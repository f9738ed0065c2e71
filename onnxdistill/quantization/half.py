"""Float models in half precision, for GPUs: ONNX Runtime's CUDA provider has no integer convolutions."""

from __future__ import annotations

import warnings

import onnx
import onnx_ir as ir
from onnxruntime.transformers.float16 import convert_float_to_float16

from onnxdistill.quantization.quantizer import quiet_quantizer
from onnxdistill.quantization.shapes import infer_shapes


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with weights and activations of float16; its inputs and outputs stay float32.

    Weights that float16 can't hold are cut to its largest value.

    Args:
        model: In float32. It is not changed.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(infer_shapes(model))
    with quiet_quantizer(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for every weight that is smaller than float16's least
        half = ir.from_proto(convert_float_to_float16(copy, keep_io_types=True, disable_shape_infer=True))
    half.graph.sort()  # conversions of inputs and outputs were added at the end
    return ir.to_proto(half)
