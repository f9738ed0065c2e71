"""The part of a benchmark's page about where a model's time goes: findings, operators, roofline, slowest nodes."""

from __future__ import annotations

from collections.abc import Sequence

from onnxdistill.device.numbertext import DASH, count_text, number
from onnxdistill.device.page.markup import (
    Cell,
    Row,
    bar,
    counted,
    escape,
    figure,
    note,
    percent,
    section,
    table,
    two_sizes,
)
from onnxdistill.device.page.rooflinechart import ROOFLINE_NODES, roofline_chart
from onnxdistill.device.profiling.placement import Audit
from onnxdistill.device.profiling.profiles import CaseProfile
from onnxdistill.device.profiling.roofline import NodeRow, OpProfile, OpTypeRow
from onnxdistill.device.runtime import short_name

_SLOWEST_NODES = 12

# With more cases, only the first one is open.
_OPEN_CASES = 2


def profiles_section(profiles: Sequence[CaseProfile]) -> str:
    """Of every case: what could be otherwise, the time by operator, the roofline plot, and the slowest nodes."""
    if len(profiles) <= _OPEN_CASES:
        parts = [f"<h3>{escape(one.case)}</h3>\n{_case(one)}" for one in profiles]
    else:
        parts = [
            f"<details{' open' if index == 0 else ''}><summary>{escape(one.case)}</summary>\n{_case(one)}</details>"
            for index, one in enumerate(profiles)
        ]
    return section("Where the time goes", *parts)


def _case(one: CaseProfile) -> str:
    profile = one.profile
    doubts = "".join(f"<li>{escape(doubt)}</li>" for doubt in profile.doubts)
    parts = [
        f"<p>{escape(_placement(one.audit))}</p>",
        f'<aside class="care"><ul class="small">{doubts}</ul></aside>' if doubts else "",
        _findings(one.audit),
        _op_types(profile),
        _roofline(profile),
        _slowest(profile),
    ]
    return "\n".join(part for part in parts if part)


def _placement(audit: Audit) -> str:
    where = ", ".join(
        f"{counted(count, 'node')} on {short_name(provider)}" for provider, count in audit.nodes_by_provider.items()
    )
    text = f"The optimized graph has {where}."
    if audit.quantized:
        products = counted(audit.products, "convolution and matrix product", "convolutions and matrix products")
        text += f" {audit.integer_products} of {products} compute in 8-bit integers."
    return text


def _findings(audit: Audit) -> str:
    if not audit.findings:
        return note("Nothing was found that could be otherwise.")
    rows = [
        Row(
            escape(finding.subject),
            [
                Cell(f'{escape(finding.text)}<span class="fix">{escape(finding.fix)}</span>', css="text"),
                percent(finding.share),
            ],
        )
        for finding in audit.findings
    ]
    headings: list[Cell | str] = ["found", Cell("what, and what to do", css="text"), "of the run"]
    return table("Findings", headings, rows)


def _op_types(profile: OpProfile) -> str:
    longest = max([profile.overhead_ms, *(row.time_ms for row in profile.op_types)])
    rows = [_op_type_row(row, longest) for row in profile.op_types]
    if profile.run_ms:
        share = profile.overhead_ms / profile.run_ms
        cells = [
            bar(profile.overhead_ms / longest, "s0") if longest else "",
            number(profile.overhead_ms),
            percent(share),
        ]
        rows.append(Row('<span class="soft">outside the nodes</span>', ["", *cells, "", "", "", ""]))
    headings = ["operator", "nodes", "", "ms", "share", "MACs", "GMAC/s", "of peak", "bound by"]
    caption = f"<b>Time by operator.</b> One run takes {number(profile.wall_ms)} ms without the profiler."
    return figure(caption, table("Time by operator", headings, rows))


def _op_type_row(row: OpTypeRow, longest: float) -> Row:
    return Row(
        escape(row.op_type),
        [
            str(row.nodes),
            Cell(bar(row.time_ms / longest if longest else 0.0, "s2"), css="wide-cell"),
            *_figures(row),
        ],
    )


def _figures(row: OpTypeRow | NodeRow) -> list[str]:
    return [
        number(row.time_ms),
        percent(row.share),
        DASH if row.macs is None else count_text(row.macs),
        DASH if row.gmacs_per_s is None else f"{row.gmacs_per_s:.3g}",
        DASH if row.share_of_peak is None else percent(row.share_of_peak, 0),
        escape(row.bound),
    ]


def _roofline(profile: OpProfile) -> str:
    wide = roofline_chart(profile.nodes, profile.peaks, width=960, height=400)
    if not wide:
        return ""
    chart = two_sizes(wide, roofline_chart(profile.nodes, profile.peaks, width=350, height=320))
    shown = "Every disc is a node" if len(profile.nodes) <= ROOFLINE_NODES else "The discs are the slowest nodes"
    caption = (
        f"<b>Roofline.</b> {shown}, of an area like its time. The slopes are what the bandwidth allows, the ceilings "
        "what the arithmetic does; what lies below both could be that much faster. Numbers are ranks of the table "
        f"below. Peaks were measured with {counted(profile.peaks.threads, 'thread')}."
    )
    return figure(caption, chart)


def _slowest(profile: OpProfile) -> str:
    nodes = sorted(profile.nodes, key=lambda node: -node.time_ms)[:_SLOWEST_NODES]
    rows = [
        Row(
            f'<span class="soft">{rank}</span>&nbsp;{escape(node.name)}',
            [Cell(escape(node.op_type), css="left"), escape(node.precision), *_figures(node)],
        )
        for rank, node in enumerate(nodes, 1)
    ]
    headings: list[Cell | str] = [
        "node",
        Cell("operator", css="left"),
        "precision",
        "ms",
        "share",
        "MACs",
        "GMAC/s",
        "of peak",
        "bound by",
    ]
    left = len(profile.nodes) - len(nodes)
    rest = sum(node.time_ms for node in profile.nodes) - sum(node.time_ms for node in nodes)
    more = f"The other {counted(left, 'node')} take {number(max(0.0, rest))} ms." if left else ""
    return f"<h4>Slowest nodes</h4>{table('Slowest nodes', headings, rows)}{note(more)}"
