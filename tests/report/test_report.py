"""The report as JSON, table and page, from one made-up run with round numbers."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console, RenderableType

from onnxdistill.cli import cli
from onnxdistill.errors import ModelFileError
from onnxdistill.report import (
    CutRow,
    DecisionRow,
    GroupCut,
    LatencyFigures,
    LayerRow,
    LimitCheck,
    PlanLog,
    QuantizationLog,
    Report,
    RungRow,
    SchemeRow,
    ScoreFigures,
    SpeedupFigures,
    StageRow,
    TrainingLog,
    load_report,
)
from onnxdistill.report.explanation import channels_text, instead_text, render_explanation
from onnxdistill.report.page import render_page
from onnxdistill.report.table import count, latency, limit_text, render_report


def row(
    stage: str, score: float | None, median_ms: float, precision: str = "float32", applied: bool = True
) -> StageRow:
    return StageRow(
        stage=stage,
        precision=precision,
        parameters=270_896,
        macs=40_813_184,
        size_bytes=1_100_000,
        score=None if score is None else ScoreFigures(score, score - 1, score + 1, 100, {"cat": score, "<dog>": score}),
        latency=LatencyFigures(median_ms, median_ms, 1.1 * median_ms, None, 50),
        speedup=SpeedupFigures(1.0 / median_ms, 0.9 / median_ms, 1.1 / median_ms),
        seconds=1.0,
        applied=applied,
        summary=f"what {stage} did",
    )


@pytest.fixture
def report() -> Report:
    rows = [row("teacher", 90.0, 1.0), row("distill", 89.5, 0.5), row("quantize", 89.0, 0.25, "int8")]
    times = [{"name": r.stage, "times_ms": [r.latency.median_ms] * 5} for r in rows if r.latency]
    return Report(
        schema_version=1,
        onnxdistill_version="0",
        name="made-up",
        task="classification",
        metric="top-1 accuracy",
        metric_unit="%",
        created="2026-01-01 00:00 UTC",
        seconds=3.0,
        shipped=True,
        student_precision="int8",
        rows=rows,
        limits=[LimitCheck("max_drop", 1.5, 1.0, 0.5, 1.5, True, "points")],
        notes=["prune was <not> used"],
        groups=[GroupCut("conv1", 32, 16, ["conv1", "bn1"])],
        trainings=[TrainingLog("distill", 1, 80.0, [{"epoch": 1, "score": 88.0}])],
        artifacts=[],
        data={"test": {"images": 100, "sha256": "ab" * 32}},
        recipe={"bench": {"batch": 1, "threads": 1}},
        host={"cpu": "a processor"},
        bench={"models": times},
    )


def test_json_and_back(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report.to_json())
    assert load_report(path) == report


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 99}', '{"schema_version": 1}', "no json"])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ModelFileError, match=r"report\.json"):
        load_report(path)


def test_student_is_the_last_applied_row(report: Report) -> None:
    assert report.student.stage == "quantize"
    assert report.drop == pytest.approx(1.0)
    refused = replace(report, rows=[*report.rows[:2], replace(report.rows[2], applied=False)])
    assert refused.student.stage == "distill"
    assert refused.drop == pytest.approx(0.5)


def shown(report: Report, width: int) -> str:
    return printed(render_report(report), width)


def printed(renderable: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(report: Report, width: int) -> None:
    text = shown(report, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for part in ("271 k", "40.8 M", "1100", "89.00 %", "0.250", "0.275", "4.00×", "max_drop = 1.5: measured 1.00"):
        assert part in text


def test_a_narrow_terminal_gets_the_columns_that_matter(report: Report) -> None:
    rows = [*report.rows[:2], replace(report.rows[2], stage="factorize", applied=False, score=None)]
    text = shown(replace(report, rows=rows), 40)
    assert all(len(line) <= 40 for line in text.splitlines())
    assert "…" not in text
    for part in ("teacher", "90.00 %", "1.00", "1.00×", "(factorize)", "0.250", "4.00×"):
        assert part in text
    assert "271 k" not in text


def test_a_limit_that_was_not_measured_is_neither_met_nor_missed(report: Report, tmp_path: Path) -> None:
    blind = replace(report, limits=[LimitCheck("max_drop", 1.5, None, None, None, None, "points")])
    assert "max_drop = 1.5: not measured" in shown(blind, 100)
    assert '<li class="unknown">max_drop = 1.5: not measured</li>' in render_page(blind)
    (tmp_path / "report.json").write_text(blind.to_json())
    assert load_report(tmp_path / "report.json") == blind


def test_accuracy_that_was_not_measured_says_so(report: Report) -> None:
    blind = replace(report, rows=[replace(r, score=None) for r in report.rows], trainings=[], limits=[])
    assert "not measured" in shown(blind, 100)
    assert "not measured" in render_page(blind)
    assert blind.drop is None


def test_a_stage_that_was_not_used_is_in_brackets(report: Report) -> None:
    refused = replace(report, rows=[*report.rows[:2], replace(report.rows[2], applied=False)])
    assert "(quantize)" in shown(refused, 100)
    assert "quantize (not used)" in render_page(refused)


def test_page_escapes_names_and_repeats_itself(report: Report) -> None:
    page = render_page(report)
    assert "&lt;dog&gt;" in page
    assert "&lt;not&gt;" in page
    assert "<dog>" not in page
    assert page == render_page(report)


def test_limits_in_words() -> None:
    missed = LimitCheck("min_speedup", 3.0, 2.5, 2.4, 2.6, False, "×")
    assert limit_text(missed) == "min_speedup = 3: measured 2.50 × (95 % interval 2.40 to 2.60), MISSED"
    slow = LimitCheck("max_latency_ms", 0.02, 0.02345, 0.0229, 0.0241, False, "ms")
    assert limit_text(slow) == "max_latency_ms = 0.02: measured 0.0234 ms (95 % interval 0.0229 to 0.0241), MISSED"
    assert limit_text(LimitCheck("max_drop", 1, None, None, None, False, "points")) == "max_drop = 1: not measured"
    alone = LimitCheck("max_drop", 1.0, 0.43, None, None, True, "points")
    assert limit_text(alone) == "max_drop = 1: measured 0.43 points, met"


@pytest.mark.parametrize(
    ("limit", "measured", "unit", "met", "text"),
    [
        (4.0, 3.996, "×", False, "3.996 ×, MISSED"),
        (2.5, 2.504, "ms", False, "2.504 ms, MISSED"),
        (2.503, 2.504, "ms", False, "2.504 ms, MISSED"),
        (3.996, 3.9952, "×", False, "3.995 ×, MISSED"),
        (1.5, 1.5000000000000002, "points", True, "1.50 points, met"),
    ],
)
def test_what_misses_a_limit_does_not_read_like_it(
    limit: float, measured: float, unit: str, met: bool, text: str
) -> None:
    assert limit_text(LimitCheck("x", limit, measured, None, None, met, unit)) == f"x = {limit:g}: measured {text}"


def test_a_speedup_of_too_few_calls_has_no_interval(report: Report, tmp_path: Path) -> None:
    rows = [replace(row, speedup=SpeedupFigures(2.0, None, None)) for row in report.rows]
    found = replace(report, rows=rows, quantization=QuantizationLog(0.5, [SchemeRow("uint8", 2.0, None, None)], []))
    (tmp_path / "report.json").write_text(found.to_json())
    assert load_report(tmp_path / "report.json") == found
    page = render_page(found)
    assert "too few calls for an interval" in page
    assert "None" not in page
    file = io.StringIO()
    Console(file=file, width=100).print(render_explanation(found))
    assert "None" not in file.getvalue()


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (999, "999"), (1234, "1.23 k"), (57_500, "57.5 k"), (4.09e9, "4.09 G")]
)
def test_counts(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(None, "–"), (0.0371, "0.037"), (1.234, "1.23"), (36.74, "36.7"), (136.3, "136")]
)
def test_latencies(milliseconds: float | None, text: str) -> None:
    assert latency(milliseconds) == text


OPERATION = "int8 3x3 on 8x8"
PLAN = PlanLog(
    0.25,
    [CutRow(0.5, 0.45, 0.48, 0.125), CutRow(0.25, 0.25, 0.24, 0.5)],
    [
        DecisionRow("width", "conv1", 32, 16, 0.0625, 32, 0.125, -0.0625),
        DecisionRow("block", "layer1.0", 1, 0, 0.25, 1, 0.25, -0.25),
        DecisionRow("block", "layer1.1", 1, 1, 0.0, 0, -0.0625, None),
        DecisionRow("pair", "conv<2>", 0, 8, 0.125, 0, 0.5, -0.125),
        DecisionRow("pair", "head", 0, 0, 0.0, None, None, None),
    ],
    [
        LayerRow("conv1", OPERATION, [3, 32], [3, 16], None, 0.25, 0.125, 0.14),
        LayerRow("conv<2>", OPERATION, [32, 64], [16, 64], 8, 0.5, 0.07, 0.0625),
        LayerRow("layer1.0.conv", OPERATION, [64, 64], None, None, 0.0375, None, None),
        LayerRow("head", "int8 product of 1 rows", [64, 10], [64, 10], None, None, 0.01, None),
    ],
)
QUANTIZED = QuantizationLog(
    0.5,
    [SchemeRow("uint8", 2.0, 1.9, 2.1)],
    [RungRow("minmax", 0.75, True, 1.5, ""), RungRow("bias", None, False, 2, "?")],
)


def explained(report: Report, width: int) -> str:
    return printed(render_explanation(report), width)


def test_a_plan_is_explained_choice_by_choice_and_layer_by_layer(report: Report, tmp_path: Path) -> None:
    planned = replace(report, plan=PLAN, quantization=QUANTIZED)
    (tmp_path / "report.json").write_text(planned.to_json())
    assert load_report(tmp_path / "report.json") == planned
    text = explained(planned, 120)
    for part in (
        "what distill did",
        "How 0.250 ms were spent",
        "32: +0.12 ms, damage -0.062",
        "there: +0.25 ms, damage -0.25",
        "gone: -0.062 ms, no outputs that are numbers",
        "whole: +0.5 ms, damage -0.12",
        "nothing else is faster",
        "3→16, was 3→32",
        "16→8→64, was 32→64",
        "gone, was 64→64",
        "1.90 to 2.10",
        "0.5 points may be lost",
    ):
        assert part in text
    assert "Channel groups" not in text
    page = render_page(planned)
    for part in ("How 0.250 ms were spent", "16→8→64, was 32→64", "gone, was 64→64", "conv&lt;2&gt;", "rank 8"):
        assert part in page
    assert "conv<2>" not in page


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_an_explanation_fits_and_loses_nothing(report: Report, width: int) -> None:
    text = explained(replace(report, plan=PLAN, quantization=QUANTIZED), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for part in ("62.5", "140", "0.480"):
        assert part in text


def test_names_with_brackets_stay_as_they_are(report: Report) -> None:
    layer = replace(PLAN.layers[0], name="layer[best]")
    rung = RungRow("minmax", None, False, 1.0, "[/b]")
    odd = replace(
        report, name="net [v2]", plan=replace(PLAN, layers=[layer]), quantization=replace(QUANTIZED, rungs=[rung])
    )
    text = explained(odd, 120)
    for part in ("net [v2]", "layer[best]", "[/b]"):
        assert part in text


def test_without_a_plan_the_groups_are_explained(report: Report) -> None:
    text = explained(report, 100)
    assert "Channel groups" in text
    assert "conv1, bn1" in text
    assert "were spent" not in text


def test_layers_and_alternatives_in_words() -> None:
    assert [channels_text(layer) for layer in PLAN.layers] == [
        "3→16, was 3→32",
        "16→8→64, was 32→64",
        "gone, was 64→64",
        "64→10",
    ]
    assert instead_text(PLAN.decisions[4]) == "nothing else is faster"


def test_the_command_explains_a_run(report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(replace(report, plan=PLAN).to_json())
    for run in (tmp_path, tmp_path / "report.json"):
        result = CliRunner().invoke(cli, ["explain", str(run)])
        assert result.exit_code == 0
        assert "How 0.250 ms were spent" in result.output


def test_notes_are_reasons_too(report: Report) -> None:
    noted = replace(report, notes=["distill was left out: there is [nothing] to learn."])
    assert "- distill was left out: there is [nothing] to learn." in explained(noted, 100)
    assert "Notes" not in explained(replace(report, notes=[]), 100)


def test_runs_that_lie_elsewhere_are_named(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in (tmp_path / "run.missed", tmp_path / "front" / "2x"):
        run.mkdir(parents=True)
        (run / "report.json").write_text(report.to_json())
    (tmp_path / "front" / "front.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "front")
    for run, part in (
        (tmp_path / "run", f"missed its limits. Name {tmp_path}/run.missed"),
        (tmp_path / "front", f"{tmp_path}/front/2x"),
        (Path(), f"{tmp_path}/front/2x"),
        (Path("/"), "cannot be read as a report"),
    ):
        with pytest.raises(ModelFileError) as caught:
            cli.main(["explain", str(run)], standalone_mode=False)
        assert part in str(caught.value)


def test_what_is_no_run_cannot_be_explained(tmp_path: Path) -> None:
    for run in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelFileError, match="cannot be read as a report"):
            cli.main(["explain", str(run)], standalone_mode=False)
