"""The teacher of models/vgg16-cifar10, trained from scratch as its recipe says, and then a second time from there.

The first time it follows a ResNet-56 and a ResNet-20; the second time the same ResNet-56 and what it has become itself
(as in Furlanello et al., "Born Again Neural Networks", 2018, but from its own weights). Its ONNX files are scored on
the 10,000 test images.

Runs are kept in `runs/`: a benchmark that was ended goes on. `runs/second/teacher.pt` is what comes out.
Usage: python benchmarks/vgg16-teacher/run.py --data CIFAR10 --weights FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any

import click
from rich.console import Console

from onnxdistill import compress
from onnxdistill.recipe import load_recipe
from onnxdistill.report import Report, load_report

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

FOLDER = Path(__file__).parent
RUNS = FOLDER / "runs"
RECIPE = FOLDER.parent.parent / "models" / "vgg16-cifar10" / "recipe.toml"
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)
ASKED_PERCENT = 91.0
# Of the second time; all else is the recipe's.
AGAIN = {"epochs": 14, "learning_rate": 0.1, "views": 7}


def trained(name: str, *overrides: str) -> Report:
    """The report of a run that trains the teacher and nothing else, which is made if it is not there."""
    out, asked = RUNS / name, (*overrides, "plan=", "distill=", "quantize=", "limits=")
    if not (out / "report.json").is_file():
        compress(RECIPE, out=out, overrides=asked, console=Console())
    report = load_report(out / "report.json")
    wanted = load_recipe(RECIPE, asked).model_dump(mode="json")
    assert report.recipe["teacher"] == wanted["teacher"], f"{out} is of other settings or weights; delete it"
    return report


def following(*networks: tuple[str, Path]) -> str:
    """The override that names networks to learn from, with the files of their weights."""
    tables = (f"{{network={json.dumps(network)}, weights={json.dumps(str(path))}}}" for network, path in networks)
    return f"teacher.train.teachers=[{', '.join(tables)}]"


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of NAME-cifar10-jpeg.pt.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="To train on.")
def main(data: Path, weights: Path, device: str) -> None:
    """Makes summary.json and results.json."""
    data, weights = data.absolute(), weights.absolute()
    large, small = (("cifar-" + name, weights / f"{name}-cifar10-jpeg.pt") for name in ("resnet56", "resnet20"))
    here = (f"data.root={data}", f"teacher.train.device={device}")
    before = RUNS / "first" / "teacher.pt"
    if not (before.parent / "report.json").is_file():
        rmtree(RUNS / "second", ignore_errors=True)  # it followed another
    first = trained("first", *here, following(large, small))
    again = [f"teacher.train.{key}={value}" for key, value in AGAIN.items()]
    second = trained("second", *here, f"teacher.weights={before}", following(large, ("cifar-vgg16", before)), *again)
    figures, results = dict[str, float](), dict[str, Any]()
    for name, report in (("first", first), ("second", second)):
        score = report.teacher.score
        assert score
        figures |= {
            f"{name}_top1_percent": score.value,
            f"{name}_top1_low_percent": score.low,
            f"{name}_top1_high_percent": score.high,
        }
        (training,) = report.trainings
        results[name] = {"by_class_percent": score.by_class, "training": asdict(training)}
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_summary(
        FOLDER.name,
        f"a VGG-16 reaches {figures['second_top1_percent']:.2f} % on the 10,000 test images (JPEG copies) by following "
        "a ResNet-56, a ResNet-20, and then itself",
        "python benchmarks/vgg16-teacher/run.py --data CIFAR10 --weights FOLDER",
        figures,
        {f"teacher_at_least_{ASKED_PERCENT:g}_percent": figures["second_top1_percent"] >= ASKED_PERCENT},
        this_machine(),
    )


if __name__ == "__main__":
    main()
