"""Which of a model's nodes run where, and in which precision: what a trace says about a model that is to be deployed.

A trace has the order of execution and no edges, so what belongs together is what runs one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from onnxdistill.device.profiling.operators import CONVERSIONS, COPIES, LAYOUT, kind, multiplies
from onnxdistill.device.profiling.trace import NodeTrace, Trace
from onnxdistill.device.runtime import short_name

SCHEMA_VERSION = 1

# What takes less of a run than this is not worth a finding.
_NEGLIGIBLE = 0.02

# Shorter times are written in microseconds.
_SHORT_MS = 0.1

# A sentence names no more than so many of the parts that it is about.
_NAMED = 3

# Ways out that were measured, by operator.
_HINTS = {"ReduceMean": "Export global pooling as GlobalAveragePool, which has an integer kernel."}


@dataclass(frozen=True)
class Island:
    """Nodes of a quantized model that compute in float, one after the other, with no integer node between them.

    Attributes:
        nodes: Names, in the order of execution.
        op_types: Of the nodes.
        time_ms: All of them in one run.
        share: Of the run, 0 to 1.
    """

    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    time_ms: float
    share: float

    def __str__(self) -> str:
        return f"{' + '.join(self.op_types)} ({self.nodes[0]}, {_time(self.time_ms, self.share)})"


@dataclass(frozen=True)
class Finding:
    """Something that costs time and could be otherwise.

    Attributes:
        subject: `provider`, `copies`, `float islands`, `conversions` or `layout`.
        text: What was found, with numbers; a sentence.
        fix: What to do about it; a sentence.
        nodes: Names of the nodes that it is about.
        time_ms: These nodes in one run.
        share: Of the run, 0 to 1.
    """

    subject: str
    text: str
    fix: str
    nodes: tuple[str, ...]
    time_ms: float
    share: float


@dataclass(frozen=True)
class Audit:
    """Where and how a model runs.

    Attributes:
        model: Its path.
        provider: Full name of the execution provider that was asked for.
        nodes_by_provider: How many nodes of the graph that really runs are on which provider, by full name.
        quantized: Whether anything in it is an 8-bit integer by quantization.
        integer_nodes: How many nodes compute in 8-bit integers.
        float_nodes: How many compute in floating point.
        integer_products: How many convolutions and matrix products compute in 8-bit integers.
        products: How many convolutions and matrix products there are.
        islands: Of a quantized model, the costliest first.
        findings: The costliest first.
    """

    model: str
    provider: str
    nodes_by_provider: dict[str, int]
    quantized: bool
    integer_nodes: int
    float_nodes: int
    integer_products: int
    products: int
    islands: tuple[Island, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "schema_version": SCHEMA_VERSION,
            **self.__dict__,
            "islands": [_lists(island.__dict__) for island in self.islands],
            "findings": [_lists(finding.__dict__) for finding in self.findings],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Audit:
        """The inverse of `to_json`."""
        values = {field.name: data[field.name] for field in fields(cls)}
        values["islands"] = tuple(Island(**_tuples(island)) for island in data["islands"])
        values["findings"] = tuple(Finding(**_tuples(finding)) for finding in data["findings"])
        return cls(**values)


def audit(trace: Trace) -> Audit:
    """Looks at every node of a trace."""
    kinds = Counter(kind(node) for node in trace.nodes)
    products = [node for node in trace.nodes if multiplies(node.op_type)]
    integer_products = [node for node in products if kind(node) == "integer"]
    quantized = is_quantized(trace)
    islands = sorted(_islands(trace), key=lambda island: -island.time_ms) if quantized else []
    findings = [*_elsewhere(trace), *_copies(trace), *_layout(trace)]
    if quantized:
        findings += [*_float_islands(trace, islands, products), *_conversions(trace)]
    return Audit(
        model=trace.model,
        provider=trace.provider,
        nodes_by_provider=dict(Counter(node.provider for node in trace.nodes)),
        quantized=quantized,
        integer_nodes=kinds["integer"],
        float_nodes=kinds["float"],
        integer_products=len(integer_products),
        products=len(products),
        islands=tuple(islands),
        findings=tuple(sorted(findings, key=lambda finding: -finding.time_ms)),
    )


def is_quantized(trace: Trace) -> bool:
    """Whether the model converts to 8-bit integers or multiplies them; that it takes bytes does not count."""
    return any(
        node.op_type in CONVERSIONS or (multiplies(node.op_type) and kind(node) == "integer") for node in trace.nodes
    )


def _elsewhere(trace: Trace) -> Iterator[Finding]:
    others = [node for node in trace.nodes if node.provider != trace.provider and node.op_type not in COPIES]
    if not others:
        return
    asked = short_name(trace.provider)
    where = ", ".join(sorted({short_name(node.provider) for node in others}))
    text = f"{len(others)} of {len(trace.nodes)} nodes run on {where} and not on {asked}: {_ops(others)};"
    yield _finding(
        trace,
        "provider",
        text,
        f"Export the model without these operators, or in a form of them that {asked} takes.",
        others,
    )


def _copies(trace: Trace) -> Iterator[Finding]:
    copies = [node for node in trace.nodes if node.op_type in COPIES]
    if copies:
        text = f"{_count(copies, 'copy', 'copies')} between the memories of two devices ({_ops(copies)}):"
        fix = f"They go away together with the nodes that do not run on {short_name(trace.provider)}."
        yield _finding(trace, "copies", text, fix, copies)


def _layout(trace: Trace) -> Iterator[Finding]:
    nodes = [node for node in trace.nodes if node.op_type in LAYOUT]
    if _matters(trace, nodes):
        text = f"{_count(nodes, 'change')} of the memory layout ({_ops(nodes)}):"
        fix = (
            "They stand at the ends of the model, and where kernels of different layouts meet: fewer nodes that are "
            "left in another precision or layout, and no Transpose in the model itself, make them fewer."
        )
        yield _finding(trace, "layout", text, fix, nodes)


def _float_islands(trace: Trace, islands: Sequence[Island], products: Sequence[NodeTrace]) -> Iterator[Finding]:
    nodes = [node for node in trace.nodes if kind(node) == "float"]
    if not _matters(trace, nodes):
        return
    left = [node for node in products if kind(node) == "float"]
    most = ", ".join(str(island) for island in islands[:_NAMED])
    text = (
        f"{_count(nodes, 'node')} of this quantized model still compute{'s' if len(nodes) == 1 else ''} in float, "
        f"{len(left) or 'none'} of the {len(products)} convolutions and matrix products among them, "
        f"in {_count(islands, 'island')} ({'the largest: ' if len(islands) > _NAMED else ''}{most}):"
    )
    yield _finding(trace, "float islands", text, _why_float(trace, nodes), nodes)


def _why_float(trace: Trace, islands: Sequence[NodeTrace]) -> str:
    hints = [_HINTS[op_type] for op_type in dict.fromkeys(node.op_type for node in islands) if op_type in _HINTS]
    if any(multiplies(node.op_type) for node in islands):
        signed = any(_converts_signed(node) for node in trace.nodes)
        hints.insert(
            0,
            "The activations are signed (int8), and kernels for x86-64 take unsigned ones: quantize them to uint8."
            if signed
            else "Quantize their inputs, weights and outputs, each by a pair of QuantizeLinear and DequantizeLinear.",
        )
    return " ".join(hints) or "Use operators that have integer kernels, or fewer islands: each costs two conversions."


def _converts_signed(node: NodeTrace) -> bool:
    """Whether it converts activations from or to int8; a weight, which is a constant, is int8 anyway."""
    if node.op_type == "QuantizeLinear":
        return any(tensor.dtype == "int8" for tensor in node.outputs)
    return node.op_type == "DequantizeLinear" and node.activation_bytes > 0 and node.inputs[0].dtype == "int8"


def _conversions(trace: Trace) -> Iterator[Finding]:
    inside = _inner_conversions(trace.nodes)
    if not _matters(trace, inside):
        return
    weights = [node for node in inside if node.activation_bytes == 0]
    constant = f", {len(weights)} of them of constant weights, in every run," if weights else ""
    one = len(inside) == 1
    text = (
        f"{_count(inside, 'conversion')} between float and integers inside the model {'is' if one else 'are'} left "
        f"({_ops(inside)}){constant} that no integer kernel has taken in:"
    )
    fix = "They go away together with the float islands that they stand around."
    yield _finding(trace, "conversions", text, fix, inside)


def _inner_conversions(nodes: Sequence[NodeTrace]) -> list[NodeTrace]:
    """All but those at the ends, which turn the model's own inputs into integers and its outputs back."""
    computing = [index for index, node in enumerate(nodes) if kind(node) in ("integer", "float")]
    if not computing:
        return []
    first, last = computing[0], computing[-1]
    return [
        node
        for index, node in enumerate(nodes)
        if node.op_type in CONVERSIONS
        and not (index < first and node.op_type == "QuantizeLinear")
        and not (index > last and node.op_type == "DequantizeLinear")
    ]


def _islands(trace: Trace) -> Iterator[Island]:
    members: list[NodeTrace] = []
    for node in trace.nodes:
        if kind(node) == "float":
            members.append(node)
        elif members and (kind(node) == "integer" or node.op_type == "QuantizeLinear"):
            yield _island(trace, members)
            members = []
    if members:
        yield _island(trace, members)


def _island(trace: Trace, members: Sequence[NodeTrace]) -> Island:
    time_ms = _sum(members)
    return Island(
        nodes=tuple(node.name for node in members),
        op_types=tuple(node.op_type for node in members),
        time_ms=time_ms,
        share=trace.share(time_ms),
    )


def _matters(trace: Trace, nodes: Sequence[NodeTrace]) -> bool:
    return bool(nodes) and trace.share(_sum(nodes)) >= _NEGLIGIBLE


def _finding(trace: Trace, subject: str, text: str, fix: str, nodes: Sequence[NodeTrace]) -> Finding:
    time_ms = _sum(nodes)
    share = trace.share(time_ms)
    return Finding(
        subject=subject,
        text=f"{text} {_time(time_ms, share)} of the run.",
        fix=fix,
        nodes=tuple(node.name for node in nodes),
        time_ms=time_ms,
        share=share,
    )


def _time(time_ms: float, share: float) -> str:
    return f"{time_ms * 1e3:.3g} µs, {share:.1%}" if time_ms < _SHORT_MS else f"{time_ms:.3g} ms, {share:.1%}"


def _sum(nodes: Iterable[NodeTrace]) -> float:
    return sum(node.time_ms for node in nodes)


def _ops(nodes: Sequence[NodeTrace]) -> str:
    """`Conv ×3, Relu`: operators with how many there are, the most frequent first."""
    counts = Counter(node.op_type for node in nodes)
    return ", ".join(name if count == 1 else f"{name} ×{count}" for name, count in counts.most_common())


def _count(items: Sequence[object], singular: str, plural: str = "") -> str:
    return f"{len(items)} {singular if len(items) == 1 else plural or singular + 's'}"


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _lists(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
