"""Prepared float models and their int8 forms, as the pipeline makes them."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray

from onnxdistill.quantization.calibration import collect, find_activations
from onnxdistill.quantization.preparation import prepare
from onnxdistill.quantization.quantizer import insert_qdq
from onnxdistill.quantization.ranges import Range, find_range
from onnxdistill.quantization.scheme import Scheme
from tests.quantization.graphs import Constants, model_of

USUAL = Scheme("uint8", per_channel=False)


def prepared_of(text: str, constants: Constants) -> onnx.ModelProto:
    """A model from the body of a graph, prepared for quantization."""
    return prepare(model_of(text, constants))


def quantized_of(prepared: onnx.ModelProto, x: NDArray[Any], scheme: Scheme = USUAL) -> onnx.ModelProto:
    """Its int8 form, with ranges that cover what the input `x` shows."""
    found = find_activations(prepared)
    ranges: dict[str, Range] = {}
    for name, histogram in collect(prepared, found.observed, [{"x": x}]).items():
        covered = find_range(histogram, "minmax")
        assert covered is not None
        ranges[name] = covered
    ranges |= {name: ranges[target] for name, target in found.same_as.items()}
    return insert_qdq(prepared, ranges, scheme)
