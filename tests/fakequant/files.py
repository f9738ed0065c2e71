"""Real QDQ files of small networks, and what ONNX Runtime computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from onnxdistill.fakequant import FakeQuantized
from onnxdistill.quantization.scheme import Scheme
from onnxdistill.quantization.workshop import Form, Workshop
from onnxdistill.recipe import ExportTable
from onnxdistill.stages.export import export
from tests.quantization.graphs import add_exact_sums

Array = NDArray[np.float32]


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with random biases and statistics, so that nothing is left out as zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.normal_(bias, 0, 0.1, generator=generator)
    return network.eval()


def quantized(
    source: Path,
    path: Path,
    samples: Tensor,
    *,
    activations: Literal["uint8", "int8"] = "uint8",
    per_channel: bool = True,
    bits: Literal[7, 8] = 8,
) -> Path:
    """An int8 file of a float one."""
    workshop = Workshop(source, lambda: [{"input": samples.numpy()}])
    workshop.write(Form(Scheme(activations, per_channel, bits)), path)
    return path


def exported(network: nn.Module, path: Path, samples: Tensor) -> Path:
    """A float file."""
    export(network.eval(), samples[:3], path, ExportTable())
    return path


def session_of(path: Path, *, optimized: bool = False) -> onnxruntime.InferenceSession:
    """Of every node as it is in the file, or of what is made of it."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if optimized:
        add_exact_sums(options)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs_of(path: Path, inputs: Tensor, *, optimized: bool = False) -> Array:
    """The first output in ONNX Runtime."""
    output: Array = session_of(path, optimized=optimized).run(None, {"input": inputs.numpy()})[0]
    return output


def assert_equal(path: Path, other: Path) -> None:
    """That two files have the same initializers and nodes."""
    ours, theirs = initializers(path), initializers(other)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (values.dtype, values.shape)
        np.testing.assert_array_equal(ours[name], values)
    assert onnx.load(path).graph.node == onnx.load(other).graph.node


def compare_layers(path: Path, inputs: Tensor) -> tuple[int, int]:
    """How many rounded values inside a network are not ONNX Runtime's, and of how many.

    Every layer gets ONNX Runtime's own values, so that what differs is what the layer itself does.
    """
    model = onnx.load(path)
    network = FakeQuantized(model)
    arrays = initializers(path)
    scales = {node.output[0]: arrays[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    rounded = {outputs[0]: scales[integers].item() for integers, outputs in network._roles.pairs.items()}
    have = {port.name for port in model.graph.output}
    for name in rounded.keys() - have:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    everything = path.with_name("everything.onnx")
    onnx.save(model, everything)
    names = [port.name for port in model.graph.output]
    expected = dict(zip(names, session_of(everything).run(names, {"input": inputs.numpy()}), strict=True))
    differing = total = 0
    with torch.inference_mode():
        values = network._values()
        values["input"] = inputs
        for step in network._program.steps:
            step.apply(values)
            name = step.outputs[0]
            if name in rounded and name in values:
                apart = np.abs(values[name].numpy() - expected[name]) / rounded[name]
                assert apart.max() < 1.5, f"{name} is {apart.max()} steps apart"
                differing, total = differing + int((apart > 0.5).sum()), total + apart.size
                values[name] = torch.tensor(expected[name])
    return differing, total


def initializers(path: Path) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def last_scale(path: Path) -> float:
    """The scale of the output."""
    model = onnx.load(path)
    (node,) = (node for node in model.graph.node if model.graph.output[0].name in node.output)
    return float(initializers(path)[node.input[1]].item())
