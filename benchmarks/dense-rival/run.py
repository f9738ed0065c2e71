"""Students of ResNet-56 as fast as a dense ResNet-20 in int8, and faster: how far their accuracy drops.

The rival needs no compression but int8: a network of the same kind with a third of the blocks, trained by itself. Its
speed is measured first, against ResNet-56 in float32; then `compress` plans for that speed, and for multiples of it,
and distils as the recipe says, for at most so many minutes. So that distillation is not what is compared, there is a
second rival: the same ResNet-20, taught by ResNet-56 with the same settings for as long. In the end all int8 files are
timed in turns in one run, and scored on the 10,000 test images, which nothing is decided by.

The weights of both networks were trained on all training images, those of validation among them. So validation favours
what is near to them: the ResNet-20 that is taught begins with its own weights, and may keep them.

Runs are kept in `runs/`: a benchmark that was ended goes on, on a machine of the same kind.
Usage: python benchmarks/dense-rival/run.py --data CIFAR10 --weights FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
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
RUNS, KNOWN = FOLDER / "runs", FOLDER / "runs" / "known.json"
MODELS = FOLDER.parent.parent / "models"
DENSE, TAUGHT, WHOLE = "dense_resnet20_in_int8", "dense_resnet20_taught_by_resnet56_in_int8", "resnet56_in_int8"
# Of the last measurement, for each file.
SECONDS_EACH = 15
# Two measurements of the same file differ by so much.
TOLERANCE = 1.02
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


def student_of(name: str, out: Path, *overrides: str) -> Path:
    """The int8 student's file of a run of a recipe, which is made if it is not there."""
    if not (out / "report.json").is_file():
        without_limits = ("limits.max_drop=", "limits.min_speedup=")
        compress(MODELS / name / "recipe.toml", out=out, overrides=(*overrides, *without_limits), console=Console())
    assert load_report(out / "report.json").student.precision == "int8", f"{out} holds no int8 student"
    return out / "student.onnx"


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of NAME-cifar10-jpeg.pt.")
@click.option("--minutes", default=45.0, show_default=True, help="Of distillation for every student, at the most.")
@click.option(
    "--times", type=float, multiple=True, default=(1.3,), help="Also plan for so many times the rival's speed."
)
def main(data: Path, weights: Path, minutes: float, times: tuple[float, ...]) -> None:
    """Makes summary.json."""
    data, weights = data.absolute(), weights.absolute()
    known = known_before({"minutes": minutes, "data": data.name, "weights": weights.name})
    root = f"data.root={data}"
    small = (root, f"teacher.weights={weights / 'resnet20-cifar10-jpeg.pt'}", "prune=", "distill=")
    large = (root, f"teacher.weights={weights / 'resnet56-cifar10-jpeg.pt'}")
    dense = student_of("resnet20-cifar10", RUNS / "dense", *small, "data.validation=0.04")
    # Its teacher's file, and the student that int8 alone makes.
    whole = student_of("resnet56-cifar10", RUNS / "int8", *large, "plan=", "distill=")
    teacher = whole.parent / "teacher.onnx"
    if "rival_speedup_x" not in known:
        timed = Here().bench({"teacher": teacher, "dense": dense}, threads=1, seconds=2 * SECONDS_EACH, seed=0)
        known["rival_speedup_x"] = timed["dense"].speedup.value
        KNOWN.write_text(json.dumps(known, indent=1) + "\n")
    students = {}
    for factor in (1.0, *times):
        speedup, name = factor * known["rival_speedup_x"], f"planned_for_{factor:g}_times_its_speed".replace(".", "_")
        asked = (f"plan.speedup={speedup:.3f}", f"distill.minutes={minutes}")
        students[name] = student_of("resnet56-cifar10", RUNS / name, *large, *asked)
    distill = load_recipe(MODELS / "resnet56-cifar10" / "recipe.toml").distill
    assert distill is not None
    kept = ("epochs", "batch_size", "learning_rate", "schedule", "crop_pad", "flip", "views")
    taught_as = [f"teacher.train.{key}={json.dumps(getattr(distill, key))}" for key in kept]
    follows = f'{{network="cifar-resnet56", weights="{weights / "resnet56-cifar10-jpeg.pt"}"}}'
    taught_as += [f"teacher.train.minutes={minutes}", f"teacher.train.teachers=[{follows}]"]
    taught = student_of("resnet20-cifar10", RUNS / "taught", *small, "data.validation=0.04", *taught_as)
    files = {"teacher": teacher, DENSE: dense, TAUGHT: taught, WHOLE: whole, **students}
    timed = Here().bench(files, threads=1, seconds=SECONDS_EACH * len(files), seed=0)
    recipe = load_recipe(MODELS / "resnet56-cifar10" / "recipe.toml", [root])
    task = Classification(load_images(recipe.data, recipe.seed))
    scores = {name: verify(path, task, SessionSettings(threads=2)) for name, path in files.items()}
    results = {
        name: {
            "test_percent": scores[name].value,
            "median_ms": timed[name].latency_ms.median.value,
            "speedup": timed[name].speedup.to_json(),
            # How it was made.
            "seconds": (report := load_report(path.parent / "report.json")).seconds,
            "stages": [{**asdict(row), "score": row.score and row.score.value} for row in report.rows],
            "trainings": [asdict(training) for training in report.trainings],
            "notes": report.notes,
        }
        for name, path in files.items()
    }
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    summarise(scores, {name: timed[name].speedup for name in files if name != "teacher"}, list(students), minutes)


def known_before(settings: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run with the same settings on a machine of the same kind, or the beginning of one.

    Raises:
        UsageError: If what is kept there was made otherwise.
    """
    RUNS.mkdir(exist_ok=True)
    host = this_machine()
    settings |= {key: host[key] for key in ("cpu", "int8_features", "onnxruntime")}
    known: dict[str, Any] = json.loads(KNOWN.read_text()) if KNOWN.is_file() else settings
    if {key: known[key] for key in settings} != settings:
        raise click.UsageError(f"{RUNS} holds runs with {known}, and this is {settings}.")
    KNOWN.write_text(json.dumps(known, indent=1) + "\n")
    return known


def summarise(scores: dict[str, Score], speedups: dict[str, Any], students: list[str], minutes: float) -> None:
    """Writes the summary; the first student is the one that was planned for the rival's speed."""
    figures = {"resnet56_in_float32_percent": scores["teacher"].value}
    for name, speedup in speedups.items():
        figures[f"{name}_speedup_x"] = speedup.value
        figures[f"{name}_speedup_low_x"], figures[f"{name}_speedup_high_x"] = speedup.low, speedup.high
        figures[f"{name}_percent"] = scores[name].value
        figures[f"{name}_drop_points"] = scores["teacher"].value - scores[name].value
    first, ahead = students[0], {}
    for rival in (DENSE, TAUGHT):
        points = scores[first].value - scores[rival].value
        interval = paired_interval(scores[first], scores[rival], points)
        assert interval is not None, "every sample is right or wrong"
        named = f"ahead_of_{rival}"
        figures |= {f"{named}_points": points, f"{named}_low_points": interval[0], f"{named}_high_points": interval[1]}
        ahead[named] = interval[0] > 0
    write_summary(
        FOLDER.name,
        "ResNet-56 planned for the speed of a dense ResNet-20 in int8, and for higher ones, each distilled for at most "
        f"{minutes:g} minutes, against that ResNet-20 as it is, and taught by ResNet-56 for as long",
        "python benchmarks/dense-rival/run.py --data CIFAR10 --weights FOLDER",
        figures,
        {"as_fast_as_the_dense_rival": speedups[first].value * TOLERANCE >= speedups[DENSE].value, **ahead},
        this_machine(),
    )


if __name__ == "__main__":
    main()
