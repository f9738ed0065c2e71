"""A front of students as one self-contained HTML page."""

from __future__ import annotations

from onnxdistill.report.charts import front_chart
from onnxdistill.report.front import StudentFront
from onnxdistill.report.page import environment, markup
from onnxdistill.report.table import score_text


def render_front_page(front: StudentFront) -> str:
    """Renders the page; it links to the students' own pages beside it."""
    return (
        environment()
        .get_template("front.html.j2")
        .render(front=front, chart=markup(front_chart(front)), score_text=score_text)
    )
