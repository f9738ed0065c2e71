"""Stage `export`: write a network as one checked ONNX file with a dynamic batch, and prove that it agrees."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.errors import NetworkError, ParityError, is_of_memory
from onnxdistill.onnxfile import SCOPES, save_checked
from onnxdistill.recipe import ExportTable

# float32 kernels that sum in another order differ by about the square root of the number of terms times 1e-7.
RELATIVE_TOLERANCE = 1e-3
# An ONNX file is one message of protocol buffers, which holds less than 2 GiB; some of it is structure.
LARGEST_WEIGHTS_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class ExportResult:
    """An ONNX file, and the largest difference of its outputs from the network's, relative to their size."""

    path: Path
    relative_difference: float


def export(
    network: nn.Module,
    example: Tensor,
    path: Path,
    table: ExportTable,
    *,
    input_name: str = "input",
    output_name: str = "output",
    metadata: Mapping[str, str] | None = None,
) -> ExportResult:
    """Exports a network and compares the optimized ONNX Runtime session with it, at batch 1 and at the example's.

    Args:
        network: In evaluation mode; maps `[N, ...]` to `[N, ...]`.
        example: An input `[N, ...]` with N > 1.
        path: Where the file goes; weights are inside, no external data.
        table: The recipe's `[export]`.
        input_name: Name of the input in the file.
        output_name: Name of the output in the file.
        metadata: Goes into the file's metadata.

    Raises:
        NetworkError: If the network cannot be exported.
        ParityError: If ONNX Runtime computes something else.
    """
    size = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    if size >= LARGEST_WEIGHTS_BYTES:
        raise NetworkError(
            f"{type(network).__name__} has weights of {size / 1e9:.1f} GB, and an ONNX file holds less than 2.1 GB.",
            "Begin with a smaller teacher.",
        )
    batch = torch.export.Dim("batch", min=1)
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                # Exporting a copy leaves no traces on the module that goes on to the next stage.
                copy.deepcopy(network).eval(),
                (example,),
                dynamo=True,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=({0: batch},),
                opset_version=table.opset,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            if is_of_memory(error):
                raise
            raise NetworkError(
                f"{type(network).__name__} cannot be exported to ONNX: {_cause(error)}",
                "The network has to be traceable by torch.export with a dynamic batch.",
            ) from error
    assert program is not None  # only the exporter without dynamo returns None
    model = program.model_proto
    _forget_sources(model)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    save_checked(model, path)
    return ExportResult(path, _parity(network, example, path, input_name, output_name))


def _forget_sources(model: onnx.ModelProto) -> None:
    """Keeps of the exporter's notes on each node only the module that it comes from.

    The others tell whoever gets the file where the user's source code lies, line by line.
    """
    for function in model.functions:
        del function.metadata_props[:]
        _forget_sources_of(function.node)
    _forget_sources_of(model.graph.node)
    for values in (model.graph.value_info, model.graph.input, model.graph.output, model.graph.initializer):
        for value in values:
            del value.metadata_props[:]


def _forget_sources_of(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        scopes = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _forget_sources_of(graph.node)


def _parity(network: nn.Module, example: Tensor, path: Path, input_name: str, output_name: str) -> float:
    session = open_session(path, SessionSettings())
    worst = 0.0
    for inputs in (example[:1], example):
        with torch.inference_mode():
            expected = network(inputs.clone()).numpy()  # it may work in place on what it gets
        if not np.isfinite(expected).all():
            raise ParityError(
                f"The {type(network).__name__} itself gives NaN or infinity, so that {path.name} cannot be compared.",
                "Check the weights of the teacher, and data.mean and data.std.",
            )
        actual = session.run({input_name: inputs.numpy()})[output_name]
        difference = float(np.abs(actual - expected).max()) / max(1e-12, float(np.abs(expected).max()))
        # Each by itself, and written so that a NaN fails: `max` would lose it.
        if not difference <= RELATIVE_TOLERANCE:
            raise ParityError(
                f"The exported {path.name} computes something else than the network: its outputs differ by "
                f"{difference:.2g} of their largest value, more than {RELATIVE_TOLERANCE:g}.",
                "This is a fault of an operator's export; another export.opset may avoid it.",
            )
        worst = max(worst, difference)
    return worst


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's own progress and its advice to developers off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _cause(error: BaseException) -> str:
    root, seen = error, set[int]()
    while root.__cause__ is not None and id(root) not in seen:  # a user's code may make a circle
        seen.add(id(root))
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return (lines[0][:300] if lines else type(root).__name__).rstrip(".") + "."
