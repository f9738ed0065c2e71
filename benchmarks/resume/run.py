"""Runs that are killed (SIGKILL) at random moments and started again, against one that never was: the same student?

Usage: python benchmarks/resume/run.py [--kills 10]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

RECIPE = Path(__file__).parent.parent.parent / "models" / "digits" / "recipe.toml"
# Shorter than the recipe, and with no limit that a busy machine could miss.
SHORTER = ["teacher.train.epochs=6", "distill.epochs=6", "limits.min_speedup=1.0", "limits.max_drop=50.0"]


def command(out: Path) -> list[str]:
    settings = [part for item in SHORTER for part in ("--set", item)]
    return [sys.executable, "-m", "onnxdistill", "compress", str(RECIPE), "--out", str(out), "--quiet", *settings]


def whole(out: Path) -> float:
    """Runs to the end; returns the seconds that it took."""
    started = time.monotonic()
    subprocess.run(command(out), check=True)
    return time.monotonic() - started


def killed_at(out: Path, seconds: float) -> list[str]:
    """Kills a run after so many seconds; returns what its journal holds then."""
    with subprocess.Popen(command(out)) as process:
        time.sleep(seconds)
        process.kill()
    journal = out.parent / f".{out.name}.resume"
    return sorted(path.name for path in journal.iterdir()) if journal.is_dir() else []


def same(one: Path, other: Path) -> bool:
    """Whether two run folders hold the same student, bit by bit.

    Its weights: whether int8 or float32 ships is measured in every run, and may be a close thing.
    """
    first, second = (torch.load(folder / "student.pt", weights_only=True)["state"] for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@click.command()
@click.option("--kills", default=10, show_default=True)
def main(kills: int) -> None:
    """Makes results.json and summary.json."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole_s = whole(folder / "whole")
        for index in range(kills):
            out = folder / f"killed-{index}"
            moment_s = float(rng.uniform(0, whole_s))
            held = killed_at(out, moment_s)
            rest_s = whole(out)
            left = sorted(path.name for path in folder.glob(f".killed-{index}*"))
            rows.append(
                {
                    "killed_at_s": moment_s,
                    "journal_held": held,
                    "rest_s": rest_s,
                    "same_student": same(folder / "whole", out),
                    "left_behind": left,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    place = Path(__file__).parent
    (place / "results.json").write_text(json.dumps({"whole_s": whole_s, "kills": rows}, indent=1) + "\n")
    equal = sum(row["same_student"] for row in rows)
    write_summary(
        place.name,
        f"of {kills} runs killed at random moments and started again, {equal} ended with the same student, bit by bit, "
        "as the run that was never killed",
        "python benchmarks/resume/run.py",
        {
            "runs_count": float(kills),
            "same_student_count": float(equal),
            "whole_run_s": whole_s,
            "median_rest_s": float(np.median([row["rest_s"] for row in rows])),
        },
        {
            "every_student_is_the_same": equal == kills,
            "nothing_is_left_behind": not any(row["left_behind"] for row in rows),
        },
        this_machine(),
    )


if __name__ == "__main__":
    main()
