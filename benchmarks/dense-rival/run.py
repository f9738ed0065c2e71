"""Students of ResNet-56 as fast as a dense ResNet-20 in int8, and faster: how far their accuracy drops.

The rival needs no compression but int8: a network of the same kind with a third of the blocks, trained by itself. Its
speed is measured first, against ResNet-56 in float32; then `compress` plans for that speed, and for those that are
asked for, and distils as the recipe says, for at most so many minutes. In the end all int8 files are timed in turns in
one run, and scored on the 10,000 test images, which nothing is decided by.

Runs are kept in `runs/`: a benchmark that was ended goes on.
Usage: python benchmarks/dense-rival/run.py --data CIFAR10 --weights FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from onnxdistill import compress
from onnxdistill.data import load_images
from onnxdistill.device.places import Here
from onnxdistill.device.session import SessionSettings
from onnxdistill.recipe import load_recipe
from onnxdistill.report import load_report
from onnxdistill.stages.verify import verify
from onnxdistill.tasks.base import Score, paired_interval
from onnxdistill.tasks.classification import Classification

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

FOLDER = Path(__file__).parent
RUNS, RIVAL_SPEED = FOLDER / "runs", FOLDER / "runs" / "rival.json"
MODELS = FOLDER.parent.parent / "models"
RIVAL = "dense ResNet-20"
# Of the last measurement, for each file.
SECONDS_EACH = 15
# Two measurements of the same file differ by so much.
TOLERANCE = 1.02
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


def student_of(name: str, out: Path, *overrides: str) -> Path:
    """The student's file of a run of a recipe, which is made if it is not there."""
    if not (out / "report.json").is_file():
        without_limits = ("limits.max_drop=", "limits.min_speedup=")
        compress(MODELS / name / "recipe.toml", out=out, overrides=(*overrides, *without_limits), console=Console())
    return out / "student.onnx"


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of NAME-cifar10-jpeg.pt.")
@click.option("--minutes", default=45.0, show_default=True, help="Of distillation for every student, at the most.")
@click.option(
    "--speedup", "speedups", type=float, multiple=True, default=(6.0,), help="Beside the rival's; repeatable."
)
def main(data: Path, weights: Path, minutes: float, speedups: tuple[float, ...]) -> None:
    """Makes summary.json."""
    data, weights = data.absolute(), weights.absolute()
    root = f"data.root={data}"
    RUNS.mkdir(exist_ok=True)
    rival = student_of(
        "resnet20-cifar10", RUNS / "rival", root, f"teacher.weights={weights / 'resnet20-cifar10-jpeg.pt'}",
        "prune=", "distill=",
    )  # fmt: skip
    ours = (root, f"teacher.weights={weights / 'resnet56-cifar10-jpeg.pt'}")
    # Its teacher's file, and the student that int8 alone makes.
    whole = student_of("resnet56-cifar10", RUNS / "int8", *ours, "plan=", "distill=")
    teacher = whole.parent / "teacher.onnx"
    if not RIVAL_SPEED.is_file():
        timed = Here().bench({"teacher": teacher, "rival": rival}, threads=1, seconds=2 * SECONDS_EACH, seed=0)
        RIVAL_SPEED.write_text(json.dumps(timed["rival"].speedup.value))
    wanted = [round(json.loads(RIVAL_SPEED.read_text()), 2), *speedups]
    students = {
        f"{speedup:g}": student_of(
            "resnet56-cifar10", RUNS / f"{speedup:g}x", *ours, f"plan.speedup={speedup}", f"distill.minutes={minutes}"
        )
        for speedup in wanted
    }
    files = {"teacher": teacher, RIVAL: rival, "int8": whole, **students}
    timed = Here().bench(files, threads=1, seconds=SECONDS_EACH * len(files), seed=0)
    recipe = load_recipe(MODELS / "resnet56-cifar10" / "recipe.toml", [root])
    task = Classification(load_images(recipe.data, recipe.seed))
    scores = {name: verify(path, task, SessionSettings(threads=2)) for name, path in files.items()}
    summarise(scores, {name: timed[name].speedup for name in files if name != "teacher"}, list(students), minutes)


def summarise(scores: dict[str, Score], speedups: dict[str, Any], students: list[str], minutes: float) -> None:
    """Writes the summary; the first student is the one that was planned for the rival's speed."""
    figures = {"teacher_in_float32_percent": scores["teacher"].value}
    for name, speedup in speedups.items():
        key = {RIVAL: "dense_resnet20_in_int8", "int8": "teacher_in_int8"}.get(name)
        key = key or f"planned_for_{name.replace('.', '_')}_times"
        figures[f"{key}_speedup_x"] = speedup.value
        figures[f"{key}_speedup_low_x"], figures[f"{key}_speedup_high_x"] = speedup.low, speedup.high
        figures[f"{key}_percent"] = scores[name].value
        figures[f"{key}_drop_points"] = scores["teacher"].value - scores[name].value
    for name in students:
        seconds = load_report(RUNS / f"{name}x" / "report.json").seconds
        figures[f"planned_for_{name.replace('.', '_')}_times_minutes"] = seconds / 60
    first = students[0]
    points = scores[first].value - scores[RIVAL].value
    interval = paired_interval(scores[first], scores[RIVAL], points)
    assert interval is not None, "every sample is right or wrong"
    figures |= {"ahead_points": points, "ahead_low_points": interval[0], "ahead_high_points": interval[1]}
    write_summary(
        FOLDER.name,
        "ResNet-56 planned for the speed of a dense ResNet-20 in int8, and for higher ones, each distilled for at most "
        f"{minutes:g} minutes",
        "python benchmarks/dense-rival/run.py --data CIFAR10 --weights FOLDER",
        figures,
        {
            "as_fast_as_the_dense_rival": speedups[first].value * TOLERANCE >= speedups[RIVAL].value,
            "ahead_of_the_dense_rival": points > 0,
        },
        this_machine(),
    )


if __name__ == "__main__":
    main()
