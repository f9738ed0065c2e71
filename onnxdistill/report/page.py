"""The report as one self-contained HTML page."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnxdistill.report.charts import accuracy_chart, latency_chart, training_chart
from onnxdistill.report.explanation import channels_text, instead_text, microseconds, state_text
from onnxdistill.report.model import Report
from onnxdistill.report.table import count, latency, limit_text, score_text


def render_page(report: Report) -> str:
    """Renders the page: no script, no font and no picture from elsewhere."""
    trainings = [(log, markup(training_chart(report, log))) for log in report.trainings]
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            slowest_layer_ms=_slowest_layer_ms(report),
            slowest_ms=max((row.latency.median_ms for row in report.rows if row.latency), default=0.0),
            latency_chart=markup(latency_chart(report)),
            accuracy_chart=markup(accuracy_chart(report)),
            trainings=[(log, chart) for log, chart in trainings if chart is not None],
            worst_classes=_worst_classes(report),
            score_text=score_text,
            limit_text=limit_text,
            state_text=state_text,
            instead_text=instead_text,
            channels_text=channels_text,
            microseconds=microseconds,
        )
    )


def environment() -> Environment:
    """Where the templates of pages are found, and what they can call."""
    found = Environment(
        loader=PackageLoader("onnxdistill.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(count=count, latency=latency)
    return found


def markup(svg: str | None) -> Markup | None:
    """A drawing of `charts`, to be put into a page as it is."""
    return None if svg is None else Markup(svg)  # our own drawing


def _slowest_layer_ms(report: Report) -> float:
    layers = [] if report.plan is None else report.plan.layers
    return max((row.before_ms for row in layers if row.before_ms is not None), default=0.0)


def _worst_classes(report: Report) -> list[tuple[str, float, float]]:
    """`(class, teacher, student)`, the class that lost most first."""
    teacher, student = report.teacher.score, report.student.score
    if teacher is None or student is None:
        return []
    pairs = [(name, value, student.by_class[name]) for name, value in teacher.by_class.items()]
    return sorted(pairs, key=lambda pair: pair[2] - pair[1])[:10]
