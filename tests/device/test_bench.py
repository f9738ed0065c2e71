"""`bench` on real models: what it says of their times, which need the processor alone, and of their memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxdistill.device.bench import bench
from onnxdistill.device.earlier import read_result
from onnxdistill.device.jsonfile import write_json
from onnxdistill.device.result import BenchResult
from onnxdistill.device.verdicts import Slo
from onnxdistill.errors import UsageError
from tests.device.commands import run


def test_openings_and_runs(pair: tuple[Path, Path]) -> None:
    result = bench(pair[:1], runs=103)
    (case,) = result.cases
    assert [len(times) for times in case.times_ms] == [21, 21, 21, 20, 20]
    assert len(result.settings.calls_per_round) == 5
    (few,) = bench(pair[:1], runs=7).cases
    assert [len(times) for times in few.times_ms] == [7]


def test_every_setting_of_every_model(pair: tuple[Path, Path]) -> None:
    result = bench(pair, threads=[1, 2], batch=[1, 3], optimization_level=["all", "disabled"], runs=5)
    assert len(result.cases) == 2 * 2 * 2 * 2
    case = result["large, 2 threads, batch 3, disabled"]
    assert (case.model, case.threads, case.batch, case.optimization_level) == ("large", 2, 3, "disabled")
    assert case.inputs == {"x": (3, 3, 40, 40)}
    # Against the baseline model in the same setting.
    assert case.compared_with == "small, 2 threads, batch 3, disabled"
    assert case.speedup.value < 1
    assert result["small, 1 thread, batch 1, all"].is_baseline
    assert BenchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_one_model_is_compared_with_its_first_setting_item_by_item(pair: tuple[Path, Path]) -> None:
    result = bench(pair[1:], batch=[1, 8], runs=40)
    single, eight = result.cases
    assert eight.compared_with == single.name
    per_item = 8 * single.latency_ms.median.value / eight.latency_ms.median.value
    assert eight.speedup.value == pytest.approx(per_item, rel=0.5)  # the mean of the openings, not of all calls
    assert eight.throughput_per_s == pytest.approx(8e3 / eight.latency_ms.mean.value)


def test_precision_ends_it(pair: tuple[Path, Path]) -> None:
    result = bench(pair[:1], precision=0.9)
    assert len(result.cases[0].times_ms) == 5
    hopeless = bench(pair[:1], precision=1e-6, seconds=0.5)
    assert hopeless.cases[0].latency_ms.median.uncertainty > 1e-6


def test_a_regression_is_found_and_a_gain_is_none(pair: tuple[Path, Path]) -> None:
    small, large = pair
    (verdict,) = bench([small, large], max_regression=0.05).verdicts
    assert (verdict.case, verdict.outcome) == ("large", "missed")
    assert verdict.measured.low > 100
    (verdict,) = bench([large, small], max_regression=0.05).verdicts
    assert (verdict.case, verdict.outcome) == ("small", "met")


def test_an_earlier_result_as_the_baseline(
    pair: tuple[Path, Path], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    small, _ = pair
    # So much more work that no other clock frequency at that time could make up for it.
    large = make_model("earlier/large.onnx", shape=("batch", 3, 40, 40), width=512)
    write_json(tmp_path / "old.json", bench([large], seconds=0.3).to_json())
    earlier = read_result(tmp_path / "old.json")
    result = bench([small], earlier=earlier, max_regression=0.05)
    assert result.cases[0].compared_with == "earlier large"
    assert [verdict.outcome for verdict in result.verdicts] == ["met"]
    assert result.cases[0].speedup.low > 2
    with pytest.raises(UsageError, match=r"has no small with 2 threads, batch 1, on cpu, .* all; it has: large"):
        bench([small], threads=2, earlier=earlier)
    elsewhere = replace(earlier, host=replace(earlier.host, cpu="another"))
    with pytest.raises(UsageError, match=r"another machine: its processor was another, and here it is"):
        bench([small], earlier=elsewhere)
    again = replace(earlier, host=replace(earlier.host, onnxruntime="1.0.0"), shaky=("It was hot.",))
    doubted = bench([small], earlier=again, runs=30).shaky
    assert "Of the earlier benchmark: It was hot." in doubted
    assert any(doubt.startswith("The earlier benchmark ran with ONNX Runtime 1.0.0 (") for doubt in doubted)
    # What it says of the one before it is about that one; what it says of its cases is handed on.
    unsure = tuple(replace(case, shaky=("There were few calls.",)) for case in earlier.cases)
    later = replace(earlier, cases=unsure, shaky=("It was hot.", *doubted))
    told = bench([small], earlier=later, runs=30).shaky
    assert "Of the earlier benchmark: It was hot." in told
    assert "Of the earlier benchmark: large: There were few calls." in told
    assert not any("arlier benchmark" in doubt.partition(":")[2] or "ran with" in doubt for doubt in told)
    short = replace(earlier, cases=tuple(replace(case, times_ms=case.times_ms[:2]) for case in earlier.cases))
    with pytest.raises(UsageError, match="opened large only 2 times"):
        bench([small], earlier=short)


def test_bounds_of_the_latency(pair: tuple[Path, Path]) -> None:
    result = bench(pair[:1], runs=200, slo=Slo(50.0, 1e6))
    assert [verdict.outcome for verdict in result.verdicts] == ["met"]
    assert bench(pair[:1], runs=200, slo=Slo(99.0, 1e-6)).verdicts[0].outcome == "missed"


def test_a_baseline_need_not_keep_the_bound_that_others_have_to(pair: tuple[Path, Path]) -> None:
    bound = Slo(50.0, 1e-6)
    ways: list[dict[str, Any]] = [{"runs": 200}, {"rate": 500.0, "seconds": 0.5}]
    for options in ways:
        verdicts = bench(pair, baseline="large", slo=bound, **options).verdicts
        assert [(verdict.case, verdict.outcome) for verdict in verdicts] == [("small", "missed")]
    done = run(pair[0], "--baseline", pair[1], "--runs", 200, "--slo", "median=1us")
    assert done.returncode == 1
    assert "small: median ≤ 0.001 ms" in done.stderr
    assert "large: median" not in done.stderr


@pytest.mark.parametrize("rule", [{"precision": 0.99}, {"max_regression": 0.05}])
def test_what_else_ends_it_leaves_time_for_the_bound(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]
) -> None:
    place = "onnxdistill.device.measuring.measurement"
    monkeypatch.setattr(f"{place}._PRECISE_SECONDS", 1e-3)
    monkeypatch.setattr(f"{place}.OPENING_SECONDS", 2e-3)
    few = bench(pair, **rule).cases
    assert min(sum(map(len, case.times_ms)) for case in few) < 368
    result = bench(pair, slo=Slo(99.0, 1e6), **rule)
    assert min(sum(map(len, case.times_ms)) for case in result.cases) >= 368
    assert {verdict.outcome for verdict in result.verdicts if verdict.unit == "ms"} == {"met"}


def test_a_baseline_that_is_named_need_not_keep_a_bound_unless_nothing_is_compared_with_it(
    pair: tuple[Path, Path],
) -> None:
    never = Slo(50.0, 1e-6)
    first, second = (path.stem for path in pair)

    def missed(**options: object) -> list[str]:
        result = bench(pair, runs=30, slo=never, baseline=first, **options)  # type: ignore[arg-type]
        return [verdict.case for verdict in result.verdicts if verdict.outcome == "missed"]

    assert missed() == [second]
    earlier = bench(pair[:1], seconds=0.3)
    assert missed(earlier=earlier) == [first, second]
    alone = bench(pair[:1], runs=30, slo=never, baseline=first)
    assert [verdict.case for verdict in alone.verdicts] == [first]


def test_inputs_stay_where_they_are_bound(pair: tuple[Path, Path]) -> None:
    result = bench(pair, io_binding=True, runs=20)
    assert result["large"].latency_ms.median.value > result["small"].latency_ms.median.value


def test_memory_of_a_process_of_its_own(pair: tuple[Path, Path]) -> None:
    result = bench(pair[1:], batch=[1, 200], runs=2)
    one, many = (case.memory for case in result.cases)
    assert one is not None
    assert many is not None
    # The outputs alone are 200 x 64 x 38 x 38 floats, 74 MB.
    assert many.process_bytes - one.process_bytes > 50e6
    assert 10e6 < one.runtime_bytes < one.process_bytes < 1e9


def test_the_command_fails_on_a_regression(pair: tuple[Path, Path]) -> None:
    small, large = pair
    done = run(large, "--baseline", small, "--max-regression", "5%", "--format", "github")
    assert done.returncode == 1
    assert done.stdout.startswith("::error title=onnxdistill bench::large: at most 5 %25 slower than small: ")
    assert done.stderr.startswith("Error: large: at most 5 % slower than small: ")
    passed = run(small, "--baseline", large, "--max-regression", "5%", "--slo", "median=10s")
    assert passed.returncode == 0, passed.stderr
    assert "baseline" in passed.stdout
