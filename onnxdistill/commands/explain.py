"""`onnxdistill explain`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from onnxdistill.report import load_report
from onnxdistill.report.explanation import render_explanation


@click.command("explain")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
def explain_command(run: Path) -> None:
    """Show why a student looks as it does: what every stage did, and how its latency budget was spent, layer by layer.

    RUN is the folder that `onnxdistill compress` wrote, or its report.json.
    """
    report = load_report(run / "report.json" if run.is_dir() else run)
    Console(highlight=False).print(render_explanation(report))
