"""Turns the run folder of `onnxdistill compress` into a benchmark folder: report.json and summary.json.

Usage: python benchmarks/from_report.py RUN_FOLDER --min-speedup 2.5 --max-drop 1.5 [--command "..."]
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from onnxdistill.report import load_report

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.summaries import FOLDER, write_summary


@click.command()
@click.argument("run_folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--min-speedup", type=float, required=True, help="What is asked for: times faster than fp32.")
@click.option("--max-drop", type=float, required=True, help="What is asked for: points below the teacher.")
@click.option("--command", required=True, help="The command that made the run folder.")
def main(run_folder: Path, min_speedup: float, max_drop: float, command: str) -> None:
    """Writes benchmarks/NAME/ from the run folder's report."""
    report = load_report(run_folder / "report.json")
    teacher, student = report.teacher, report.student
    assert teacher.score
    assert student.score
    assert student.speedup
    assert teacher.latency
    assert student.latency
    drop = teacher.score.value - student.score.value
    # Where data and weights lie on the machine that measured says nothing to others.
    report.recipe["data"].pop("root", None)
    for network in (report.recipe["teacher"], *(report.recipe.get("distill") or {}).get("teachers", ())):
        if network["weights"] != "none":
            network["weights"] = Path(network["weights"]).name
    folder = FOLDER / report.name
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    write_summary(
        report.name,
        f"{report.name}: {student.speedup.ratio:.2f}× faster than the fp32 teacher's ONNX at one thread, batch 1, "
        f"{drop:.2f} points below it",
        command,
        {
            "speedup_x": student.speedup.ratio,
            "speedup_low_x": student.speedup.low,
            "speedup_high_x": student.speedup.high,
            "drop_points": drop,
            "teacher_top1_percent": teacher.score.value,
            "student_top1_percent": student.score.value,
            "teacher_median_ms": teacher.latency.median_ms,
            "student_median_ms": student.latency.median_ms,
            "run_minutes": report.seconds / 60,
        },
        {
            f"speedup_at_least_{min_speedup:g}": student.speedup.ratio >= min_speedup,
            f"drop_at_most_{max_drop:g}_points": drop <= max_drop,
        },
        report.host,
    )


if __name__ == "__main__":
    main()
