"""Writes the README's results from the summaries of benchmarks/; `make tables` runs it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from onnxdistill.report import Report, load_report
from onnxdistill.report.table import count, latency

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.summaries import FOLDER, Summary, read_summaries

README = FOLDER.parent / "README.md"


def stage_table(report: Report) -> str:
    """A row a stage, as the command prints it."""
    lines = [
        f"| {report.name} | parameters | MACs | size kB | {report.metric} | median ms | p95 ms | speed-up |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in report.rows:
        name = f"**{row.stage}**" if row is report.student else row.stage if row.applied else f"({row.stage})"
        score = "–" if row.score is None else f"{row.score.value:.2f} {report.metric_unit}"
        median = latency(None if row.latency is None else row.latency.median_ms)
        p95 = latency(None if row.latency is None else row.latency.p95_ms)
        speedup = "–" if row.speedup is None else f"{row.speedup.ratio:.2f}×"
        cells = [name, count(row.parameters), count(row.macs), f"{row.size_bytes / 1000:,.0f}", score]
        lines.append(f"| {' | '.join([*cells, median, p95, speedup])} |")
    return "\n".join(lines)


def claim_text(name: str, summary: Summary) -> str:
    """The claim, how to repeat it, and the figures."""
    figures = [f"{key.replace('_', ' ')} {value:g}" for key, value in summary.figures.items()]
    verdicts = [f"{'✓' if held else '✗'} {key.replace('_', ' ')}" for key, held in summary.holds.items()]
    return (
        f"**{summary.claim}** ({summary.date}, {summary.machine['cpu']}, ONNX Runtime "
        f"{summary.machine['onnxruntime']})\n\n    {summary.command}\n\n"
        f"{'; '.join(verdicts)}. Measured: {'; '.join(figures)}. "
        f"Raw results: [benchmarks/{name}](benchmarks/{name})."
    )


def results() -> str:
    """The whole generated part of the README."""
    parts = []
    for name, summary in read_summaries().items():
        parts.append(f"### {name}\n\n{claim_text(name, summary)}")
        report = FOLDER / name / "report.json"
        if report.is_file():
            parts.append(stage_table(load_report(report)))
    return "\n\n".join(parts)


def updated(text: str) -> str:
    """The README with its generated part written anew."""
    return re.sub(
        r"(<!-- results -->\n).*?(<!-- /results -->)",
        lambda m: f"{m[1]}{results()}\n{m[2]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
