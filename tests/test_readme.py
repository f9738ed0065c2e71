"""The README tells the truth: its tables, its commands, its tree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.readme_tables import updated
from benchmarks.summaries import FOLDER, read_summaries
from onnxdistill.cli import cli
from onnxdistill.report import load_report

README = Path("README.md").read_text(encoding="utf-8")


def test_generated_tables_agree_with_the_measurements() -> None:
    assert updated(README) == README, "run `make tables`"


def test_every_command_is_documented() -> None:
    for name in cli.commands:
        assert f"onnxdistill {name}" in README


def test_every_documented_command_and_option_exists() -> None:
    for command, options in re.findall(r"^    onnxdistill (\w+)([^\n]*(?:\n        [^\n]*)*)", README, flags=re.M):
        known = {option for parameter in cli.commands[command].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", options)) <= known


def test_every_documented_file_exists() -> None:
    for path in re.findall(r"\]\((?!http|#)([^)#]+)", README):
        assert Path(path).exists(), path
    for target in re.findall(r"^    make (\w+)", README, flags=re.M):
        assert f"\n{target}:" in Path("Makefile").read_text()
    tree = README[README.index("onnxdistill/\n") :].split("```")[0]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    present = {path.name for path in Path("onnxdistill").iterdir() if not path.name.startswith("__")} - {"py.typed"}
    assert named == present


@pytest.mark.parametrize("name", sorted(read_summaries()))
def test_every_summary_has_its_parts(name: str) -> None:
    summary = read_summaries()[name]
    assert summary.claim
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", summary.date)
    assert {"cpu", "onnxruntime", "usable_cpus"} <= summary.machine.keys()
    assert summary.figures
    assert all(isinstance(value, float | int) for value in summary.figures.values())
    assert summary.holds
    assert all(isinstance(value, bool) for value in summary.holds.values())
    raw = [path for path in (FOLDER / name).glob("*.json") if path.name != "summary.json"]
    assert raw, "the raw results are missing"
    for path in raw:
        json.loads(path.read_text())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/report.json")), ids=lambda path: path.parent.name)
def test_summaries_say_what_the_reports_say(path: Path) -> None:
    report, figures = load_report(path), read_summaries()[path.parent.name].figures
    assert report.student.speedup is not None
    assert figures["speedup_x"] == pytest.approx(report.student.speedup.ratio, abs=1e-4)
    assert figures["drop_points"] == pytest.approx(report.drop, abs=1e-4)
