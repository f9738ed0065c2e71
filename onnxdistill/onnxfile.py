"""Writing ONNX files: checked, and the same bytes for the same model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, MutableSequence
from pathlib import Path
from typing import TypeVar

import onnx

Entry = TypeVar("Entry", onnx.OperatorSetIdProto, onnx.StringStringEntryProto)

SCOPES = "pkg.torch.onnx.name_scopes"
"""Of a node's metadata: the modules around it, from the outermost to its own name, as a Python list."""


def save_checked(model: onnx.ModelProto, path: Path) -> None:
    """Checks a model and writes it as one file.

    The exporter and the quantizer keep operator sets and metadata in hash tables, whose order differs from one process
    to the next. Sorted, and without the sets that no node uses, equal models are equal files.

    Args:
        model: Put in order in place.
        path: Where the file goes; weights are inside, no external data.

    Raises:
        onnx.checker.ValidationError: If the model is not valid.
    """
    used = {""} | set(_domains(model.graph.node)) | {domain for f in model.functions for domain in _domains(f.node)}
    sets = [each for each in model.opset_import if _plain(each.domain) in used]
    _replace(model.opset_import, sorted(sets, key=lambda each: each.domain))
    graph = model.graph
    for described in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _replace(described.metadata_props, sorted(described.metadata_props, key=lambda entry: entry.key))
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def _domains(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    for node in nodes:
        yield _plain(node.domain)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _domains(graph.node)


def _plain(domain: str) -> str:
    """Both spellings of the standard operators' domain are in use."""
    return "" if domain == "ai.onnx" else domain


def _replace(field: MutableSequence[Entry], entries: list[Entry]) -> None:
    copies = [copy.deepcopy(entry) for entry in entries]
    del field[:]
    field.extend(copies)
