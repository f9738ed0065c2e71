"""Files for machines other than this one: what each kind of processor computes fast, and right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from onnxdistill.quantization.half import to_half
from onnxdistill.quantization.placement import float_beginning
from onnxdistill.quantization.scheme import Scheme
from onnxdistill.quantization.workshop import Form, Workshop
from onnxdistill.recipe import Target


def write_for(target: Target, workshop: Workshop, form: Form, path: Path) -> str:
    """Writes a model for a kind of machine, and says in words what it is.

    `x86-vnni` gets unsigned activations and 8-bit weights, `x86` 7-bit weights, since processors without VNNI add pairs
    of products in 16 bits, and `arm64` signed activations. `cuda` gets float16, since ONNX Runtime's CUDA provider has
    no integer convolutions; `tensorrt` gets signed, symmetric activations and float biases.

    Args:
        target: The kind of machine.
        workshop: Makes forms of the float model.
        form: What was found best on this machine: ranges, equalization, rounding and biases are taken over from it.
        path: Where the file goes.
    """
    if target == "cuda":
        workshop.save(to_half(workshop.float_model()), path)
        return "float16"
    made = replace(form, scheme=_scheme(target, workshop.float_model(form.equalization), form.scheme))
    if made.scheme.symmetric:
        made = replace(made, corrected=False)  # there are no integer biases to correct
    workshop.write(made, path)
    return str(made.scheme)


def _scheme(target: Target, model: onnx.ModelProto, found: Scheme) -> Scheme:
    beginning = frozenset(float_beginning(model))
    inaccurate = found.float_nodes - beginning  # the others are in float for speed alone
    if target in ("arm64", "tensorrt"):
        return Scheme("int8", found.per_channel, float_nodes=inaccurate, symmetric=target == "tensorrt")
    return Scheme("uint8", found.per_channel, 7 if target == "x86" else 8, float_nodes=beginning | inaccurate)
