"""`onnxdistill explain`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from onnxdistill.errors import ModelFileError
from onnxdistill.report import load_report
from onnxdistill.report.explanation import render_explanation


@click.command("explain")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
def explain_command(run: Path) -> None:
    """Show why a student looks as it does: what every stage did, and how its latency budget was spent, layer by layer.

    RUN is the folder that `onnxdistill compress` wrote, or its report.json.
    """
    path = run / "report.json" if run.is_dir() else run
    if not path.exists():
        _say_where_it_is(run)
    report = load_report(path)
    Console(highlight=False).print(render_explanation(report))


def _say_where_it_is(run: Path) -> None:
    """Refuses what holds no report, if there is one nearby."""
    run = run.absolute()
    missed = run.parent / f"{run.name}.missed"
    if (missed / "report.json").exists():
        raise ModelFileError(f"The student of {run} missed its limits.", f"Name {missed}.")
    if (run / "front.json").exists():
        runs = sorted(str(one.parent) for one in run.glob("*/report.json"))
        advice = f"Name one of its runs: {', '.join(runs)}." if runs else "None of its runs has left a student."
        raise ModelFileError(f"{run} is the folder of a front.", advice)
