"""Files for machines other than this one: what each kind of processor computes fast, and right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxdistill.device.host import read_host
from onnxdistill.quantization.half import to_half
from onnxdistill.quantization.placement import float_beginning
from onnxdistill.quantization.scheme import Scheme, saturates
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
        form: What was found best on this machine: ranges, equalization, rounding, biases and what is in float for its
            accuracy are taken over from it; what was learned by training is not.
        path: Where the file goes.
    """
    if target == "cuda":
        workshop.save(to_half(workshop.float_model()), path)
        return "float16"
    model = workshop.float_model(form.equalization)
    made = replace(form, scheme=_scheme(target, frozenset(float_beginning(model)), form))
    # There are no integer biases to correct; or else what would be corrected are sums that overflow on this machine.
    if made.scheme.symmetric or (made.scheme.weight_bits == 8 and saturates(read_host())):
        made = replace(made, corrected=False)
    workshop.write(made, path)
    return str(made)


def _scheme(target: Target, beginning: frozenset[str], form: Form) -> Scheme:
    found = form.scheme
    if target in ("arm64", "tensorrt"):
        return replace(
            found, activations="int8", weight_bits=8, float_nodes=form.restored, symmetric=target == "tensorrt"
        )
    # The beginning is in float for speed.
    nodes = beginning | form.restored
    return replace(found, activations="uint8", weight_bits=7 if target == "x86" else 8, float_nodes=nodes)
