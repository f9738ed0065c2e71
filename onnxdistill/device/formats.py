"""A benchmark as text for other programs: Markdown, annotations of GitHub Actions, JUnit's XML."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.result import BenchResult, CaseTiming
from onnxdistill.device.runtime import short_name


def markdown(result: BenchResult) -> str:
    """A table of the cases, then loads, outputs, verdicts and doubts as a list."""
    compared = any(not case.is_baseline for case in result.cases)
    headings = [
        "model",
        "median ms",
        "p90 ms",
        "p95 ms",
        "p99 ms",
        "items/s",
        *(["speed-up (95 %)"] if compared else []),
    ]
    lines = [_row(headings), _row(["---", *["--:"] * (len(headings) - 1)])]
    lines += [_row(_cells(case, compared)) for case in result.cases]
    marks = {"met": "✅", "missed": "❌", "unclear": "⚠️"}
    notes = [f"- {text}" for text in _findings(result)]
    notes += [f"- {marks[verdict.outcome]} {verdict}" for verdict in result.verdicts]
    notes += [f"- ⚠️ shaky: {doubt}" for doubt in result.doubts()]
    notes.append(f"- {_where(result)}")
    return "\n".join([*lines, "", *notes]) + "\n"


def github(result: BenchResult) -> str:
    """Workflow commands that show up as annotations of a run; without limits, a notice a case."""
    kinds = {"met": "notice", "missed": "error", "unclear": "warning"}
    lines = [_annotation(kinds[verdict.outcome], str(verdict)) for verdict in result.verdicts]
    if not lines:
        lines = [_annotation("notice", _sentence(case)) for case in result.cases]
    lines += [_annotation("notice", text) for text in _findings(result)]
    lines += [_annotation("warning", f"shaky: {doubt}") for doubt in result.doubts()]
    return "\n".join(lines) + "\n"


def junit(result: BenchResult) -> str:
    """A test a verdict, which fails if the limit is missed; without limits, a test a case, which passes."""
    suite = ElementTree.Element("testsuite", name="onnxdistill bench", timestamp=result.measured_at)
    tests: list[tuple[str, str, str, str]] = [
        (verdict.case, verdict.limit, "failure" if verdict.outcome == "missed" else "", str(verdict))
        for verdict in result.verdicts
    ] or [(case.name, "timed", "", _sentence(case)) for case in result.cases]
    suite.set("tests", str(len(tests)))
    suite.set("failures", str(sum(kind == "failure" for _, _, kind, _ in tests)))
    for case, name, kind, text in tests:
        test = ElementTree.SubElement(suite, "testcase", classname=case, name=name)
        ElementTree.SubElement(test, kind or "system-out", {"message": text} if kind else {}).text = text
    others = ElementTree.SubElement(suite, "system-out")
    others.text = "\n".join([_where(result), *_findings(result), *(f"shaky: {doubt}" for doubt in result.doubts())])
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


FORMATS: dict[str, Callable[[BenchResult], str]] = {"github": github, "junit": junit, "markdown": markdown}


def _findings(result: BenchResult) -> list[str]:
    """What was measured besides the times of calls, a sentence each."""
    loads = [f"under load: {load}" for load in result.loads]
    return loads + [f"outputs: {agreement}" for agreement in result.agreements]


def _cells(case: CaseTiming, compared: bool) -> list[str]:
    latency_ms = case.latency_ms
    figures = (latency_ms.median, latency_ms.p90, latency_ms.p95, latency_ms.p99)
    cells = [
        case.name,
        *("–" if one is None else f"{one.value:.4g}" for one in figures),
        f"{case.throughput_per_s:.4g}",
    ]
    if compared:
        cells.append("baseline" if case.is_baseline else _speedup(case.speedup))
    return cells


def _sentence(case: CaseTiming) -> str:
    median = case.latency_ms.median
    faster = "" if case.is_baseline else f", {_speedup(case.speedup)} against {case.compared_with}"
    return f"{case.name}: median {median.value:.4g} ms ({median.low:.4g} to {median.high:.4g}){faster}"


def _speedup(ratio: Estimate) -> str:
    return f"{ratio.value:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})"


def _where(result: BenchResult) -> str:
    providers = ", ".join(dict.fromkeys(short_name(case.provider) for case in result.cases))
    return f"{result.host.cpu}, {providers}, ONNX Runtime {result.host.onnxruntime}, {result.measured_at}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _annotation(kind: str, text: str) -> str:
    # As the toolkit of GitHub Actions escapes what belongs to its own syntax.
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{kind} title=onnxdistill bench::{escaped}"
