"""How close every node of a model comes to what this machine can do, and what holds it back.

The roofline model (Williams, Waterman and Patterson 2009) bounds a kernel by the peak of its arithmetic and by the
bandwidth of the memory. For nodes as small as those of a small network a third bound is the price of calling a node at
all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onnxdistill.device.numbertext import count_text
from onnxdistill.device.profiling.operators import macs, moved_bytes, precision
from onnxdistill.device.profiling.peaks import Peaks
from onnxdistill.device.profiling.trace import NodeTrace, Trace
from onnxdistill.device.schema import reading

SCHEMA_VERSION = 1

Bound = Literal["compute", "memory", "overhead", "kernel"]
"""What a node's time is mostly due to: multiply-adds, memory, the call itself, or none of them: its kernel is slow."""

# A bound that is less than this share of the time does not explain it.
_EXPLAINED = 0.25

# What setting up any real kernel costs, in calls of a node that has nothing to do.
_SETUP_CALLS = 6.0

# The profile counts whole microseconds, so that a rate of a shorter node is a guess.
_RATED_MS = 0.002

# A node that is so much faster than the peak shows that the peak is wrong.
_ABOVE_PEAK = 1.1

NODE_COLUMNS = ("node", "operator", "ms", "share", "MACs", "GMAC/s", "of peak", "bound by")
"""What is in `OpProfile.node_rows`."""

OP_TYPE_COLUMNS = ("operator", "nodes", "ms", "share", "MACs", "GMAC/s", "of peak", "bound by")
"""What is in `OpProfile.op_type_rows`."""


@dataclass(frozen=True)
class NodeRow:
    """A node against the limits of the machine.

    Attributes:
        name: Of the node.
        op_type: Operator.
        provider: Full name of the execution provider.
        precision: `int8`, or the type of its output.
        time_ms: In one run, all calls together.
        share: Of the run, 0 to 1.
        macs: Multiply-adds in one run; None for what is no convolution and no matrix product.
        moved_bytes: What it has to read and write in one run.
        gmacs_per_s: 1e9 multiply-adds a second; None without multiply-adds, or if it is too short to tell.
        share_of_peak: The same over the peak of its precision; None where that was not measured.
        bound: What its time is due to.
    """

    name: str
    op_type: str
    provider: str
    precision: str
    time_ms: float
    share: float
    macs: int | None
    moved_bytes: int
    gmacs_per_s: float | None
    share_of_peak: float | None
    bound: Bound


@dataclass(frozen=True)
class OpTypeRow:
    """All nodes of one operator together.

    Attributes:
        op_type: Operator.
        nodes: How many there are.
        time_ms: In one run.
        share: Of the run, 0 to 1.
        macs: Multiply-adds in one run; None for what is no convolution and no matrix product.
        moved_bytes: What they have to read and write in one run.
        gmacs_per_s: 1e9 multiply-adds a second; None without multiply-adds, or if they are too short to tell.
        share_of_peak: The time that they would take at the peaks of their precisions over what they take.
        bound: What most of their time is due to.
    """

    op_type: str
    nodes: int
    time_ms: float
    share: float
    macs: int | None
    moved_bytes: int
    gmacs_per_s: float | None
    share_of_peak: float | None
    bound: Bound


@dataclass(frozen=True)
class OpProfile:
    """Where the time of a model goes on this machine, and what it could be.

    Attributes:
        model: Its path.
        wall_ms: One run, median.
        run_ms: What the nodes and the overhead come to, which shares refer to.
        overhead_ms: Outside the nodes.
        peaks: Of the machine.
        nodes: In the order of execution.
        op_types: The costliest first.
        doubts: Reasons not to trust the times; each is a sentence.
    """

    model: str
    wall_ms: float
    run_ms: float
    overhead_ms: float
    peaks: Peaks
    nodes: tuple[NodeRow, ...]
    op_types: tuple[OpTypeRow, ...]
    doubts: tuple[str, ...]

    def node_rows(self) -> list[tuple[str, ...]]:
        """A row of text per node, of `NODE_COLUMNS`."""
        return [(node.name, node.op_type, *_cells(node)) for node in self.nodes]

    def op_type_rows(self) -> list[tuple[str, ...]]:
        """A row of text per operator and one for what is outside the nodes, of `OP_TYPE_COLUMNS`."""
        rows = [(row.op_type, str(row.nodes), *_cells(row)) for row in self.op_types]
        share = self.overhead_ms / self.run_ms if self.run_ms else 0.0
        return [*rows, ("outside the nodes", "", f"{self.overhead_ms:.4f}", f"{share:.1%}", "", "", "", "")]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {
            "schema_version": SCHEMA_VERSION,
            **self.__dict__,
            "peaks": self.peaks.to_json(),
            "nodes": [dict(node.__dict__) for node in self.nodes],
            "op_types": [dict(row.__dict__) for row in self.op_types],
            "doubts": list(self.doubts),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OpProfile:
        """The inverse of `to_json`.

        Raises:
            DataError: If the data is of another schema version or is not such a profile.
        """
        with reading("profile", data, SCHEMA_VERSION):
            converted = {
                "peaks": Peaks.from_json(data["peaks"]),
                "nodes": tuple(NodeRow(**node) for node in data["nodes"]),
                "op_types": tuple(OpTypeRow(**row) for row in data["op_types"]),
                "doubts": tuple(data["doubts"]),
            }
            rest = {key: value for key, value in data.items() if key != "schema_version"}
            return cls(**{**rest, **converted})


def op_profile(trace: Trace, peaks: Peaks) -> OpProfile:
    """Holds every node of a trace against the peaks of the machine that it was taken on."""
    nodes = tuple(_node_row(node, trace, peaks) for node in trace.nodes)
    groups: dict[str, list[NodeRow]] = {}
    for node in nodes:
        groups.setdefault(node.op_type, []).append(node)
    op_types = sorted((_op_type_row(group, peaks) for group in groups.values()), key=lambda row: -row.time_ms)
    return OpProfile(
        model=trace.model,
        wall_ms=trace.wall_ms,
        run_ms=trace.run_ms,
        overhead_ms=trace.overhead_ms,
        peaks=peaks,
        nodes=nodes,
        op_types=tuple(op_types),
        doubts=(*trace.doubts, *_doubts(nodes)),
    )


def _doubts(nodes: Iterable[NodeRow]) -> Iterable[str]:
    fastest = max(nodes, key=lambda node: node.share_of_peak or 0.0, default=None)
    if fastest is not None and (fastest.share_of_peak or 0.0) > _ABOVE_PEAK:
        yield (
            f"{fastest.name} comes to {fastest.share_of_peak:.0%} of what was measured as the peak: the machine was "
            f"busier when the peaks were measured."
        )


def _node_row(node: NodeTrace, trace: Trace, peaks: Peaks) -> NodeRow:
    one = macs(node)
    whole = None if one is None else round(one * node.calls_per_run)
    moved = round(moved_bytes(node) * node.calls_per_run)
    kind = precision(node)
    rate = _rate(whole, node.time_ms)
    peak = peaks.gmacs_per_s.get(kind)
    return NodeRow(
        name=node.name,
        op_type=node.op_type,
        provider=node.provider,
        precision=kind,
        time_ms=node.time_ms,
        share=trace.share(node.time_ms),
        macs=whole,
        moved_bytes=moved,
        gmacs_per_s=rate,
        share_of_peak=None if rate is None or peak is None else rate / peak,
        bound=_bound(
            node.time_ms,
            compute_ms=_at_peak_ms(whole, peak),
            memory_ms=_at_bandwidth_ms(moved, node.calls_per_run, peaks),
            setup_ms=trace.call_ms * node.calls_per_run * _SETUP_CALLS,
        ),
    )


def _bound(time_ms: float, *, compute_ms: float, memory_ms: float, setup_ms: float) -> Bound:
    """What explains most of a time; what nothing explains is due to the kernel itself."""
    if time_ms <= setup_ms:
        return "overhead"
    if max(compute_ms, memory_ms) < _EXPLAINED * time_ms:
        return "kernel"
    return "compute" if compute_ms >= memory_ms else "memory"


def _op_type_row(group: Sequence[NodeRow], peaks: Peaks) -> OpTypeRow:
    time_ms = sum(node.time_ms for node in group)
    counted = [node for node in group if node.macs is not None]
    whole = sum(node.macs or 0 for node in counted) if counted else None
    rate = _rate(whole, time_ms)
    known = all(node.precision in peaks.gmacs_per_s for node in counted)
    ideal_ms = sum(_at_peak_ms(node.macs, peaks.gmacs_per_s.get(node.precision)) for node in counted)
    times: dict[Bound, float] = {}
    for node in group:
        times[node.bound] = times.get(node.bound, 0.0) + node.time_ms
    return OpTypeRow(
        op_type=group[0].op_type,
        nodes=len(group),
        time_ms=time_ms,
        share=sum(node.share for node in group),
        macs=whole,
        moved_bytes=sum(node.moved_bytes for node in group),
        gmacs_per_s=rate,
        share_of_peak=None if rate is None or not known else ideal_ms / time_ms,
        bound=max(times, key=lambda bound: times[bound]),
    )


def _rate(count: int | None, time_ms: float) -> float | None:
    """1e9 multiply-adds a second."""
    return None if count is None or time_ms < _RATED_MS else count / time_ms / 1e6


def _at_peak_ms(count: int | None, gmacs_per_s: float | None) -> float:
    return 0.0 if count is None or gmacs_per_s is None else count / gmacs_per_s / 1e6


def _at_bandwidth_ms(moved: int, calls: float, peaks: Peaks) -> float:
    gb_per_s = peaks.gb_per_s(moved / calls) if calls else None
    return 0.0 if gb_per_s is None else moved / gb_per_s / 1e6


def _cells(row: NodeRow | OpTypeRow) -> Iterable[str]:
    yield f"{row.time_ms:.4f}"
    yield f"{row.share:.1%}"
    yield "" if row.macs is None else count_text(row.macs)
    yield "" if row.gmacs_per_s is None else f"{row.gmacs_per_s:.3g}"
    yield "" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"
    yield row.bound
