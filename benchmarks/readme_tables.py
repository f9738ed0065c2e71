"""Writes the generated parts of the README: recipe keys and results. `make tables` runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import tomli_w
from pydantic.fields import FieldInfo

from onnxdistill.recipe import GuidedTable, Recipe, table_type
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


UNITS = {"x": "×", "ms": " ms", "percent": " %", "points": " points", "minutes": " minutes", "s": " s", "count": ""}


def claim_text(name: str, summary: Summary) -> str:
    """The claim, where it was measured, how to repeat it, and what was asked."""
    verdicts = [f"{'✓' if held else '✗'} {key.replace('_', ' ')}" for key, held in summary.holds.items()]
    # What int8 figures depend on; earlier ones do not tell of GPUs.
    parts = ", ".join([*(summary.machine.get("gpus") or ()), *(summary.machine["int8_features"] or ())])
    machine = f"{summary.machine['cpu']} ({parts}), ONNX Runtime {summary.machine['onnxruntime']}"
    return (
        f"{summary.claim}. Measured {summary.date} on {machine}; "
        f"raw results in [benchmarks/{name}](benchmarks/{name}).\n\n"
        f"    {summary.command}\n\nAsked and measured: {'; '.join(verdicts)}."
    )


def figure_table(summary: Summary) -> str:
    """A row a figure; the ends of an interval stand beside what they belong to."""
    lines = ["| figure | measured | 95 % interval |", "|---|--:|--:|"]
    for key, value in summary.figures.items():
        name, _, unit = key.rpartition("_")
        if name.endswith(("_low", "_high")):
            continue
        low, high = (summary.figures.get(f"{name}_{end}_{unit}") for end in ("low", "high"))
        interval = "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
        shown = f"{value:.2f}" if unit == "x" else f"{value:.4g}"
        lines.append(f"| {name.replace('_', ' ')} | {shown}{UNITS[unit]} | {interval} |")
    return "\n".join(lines)


def results() -> str:
    """The results, benchmark by benchmark."""
    parts = []
    for name, summary in read_summaries().items():
        report = FOLDER / name / "report.json"
        table = stage_table(load_report(report)) if report.is_file() else figure_table(summary)
        parts.append(f"### {name}\n\n{claim_text(name, summary)}\n\n{table}")
    return "\n\n".join(parts)


def recipe_keys() -> str:
    """A row for every key of a recipe, from the recipe's own definition."""
    lines = ["| key | default | |", "|---|---|---|"]
    shared = GuidedTable.model_fields
    for name, field in Recipe.model_fields.items():
        table = table_type(field.annotation)
        if table is None:
            lines.append(_key_row(name, field))
            continue
        if issubclass(table, GuidedTable):
            lines += [_key_row(f"{name}.{key}`, `teacher.train.{key}", inner) for key, inner in shared.items()]
        inherited = shared if issubclass(table, GuidedTable) else {}
        own = {key: inner for key, inner in table.model_fields.items() if key not in inherited}
        lines += [row for key, inner in own.items() for row in _own_rows(f"{name}.{key}", inner)]
    return "\n".join(lines)


def _own_rows(name: str, field: FieldInfo) -> list[str]:
    """The row of a value, or those of a table within a table; the teacher's training has its rows already."""
    table = table_type(field.annotation)
    if table is None:
        return [_key_row(name, field)]
    if issubclass(table, GuidedTable):
        return []
    return [row for key, inner in table.model_fields.items() for row in _own_rows(f"{name}.{key}", inner)]


def _key_row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else "" if field.default is None else f"`{_toml(field.default)}`"
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    listed = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if len(choices) > 1 else ""
    return f"| `{name}` | {default} | {field.description}{listed} |"


def _toml(value: object) -> str:
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def updated(text: str) -> str:
    """The README with its generated parts written anew."""
    for name, part in (("recipe", recipe_keys()), ("results", results())):
        head, found, rest = text.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition(f"<!-- /{name} -->")
        assert found, f"the README has no mark for {name}"
        assert end, f"the README has no closing mark for {name}"
        text = f"{head}{found}{part}\n{end}{tail}"
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
