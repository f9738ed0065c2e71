from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from onnxdistill.device.bench import bench
from onnxdistill.device.formats import github, junit, markdown
from onnxdistill.device.result import BenchResult
from onnxdistill.device.verdicts import Slo


@pytest.fixture
def result(make_model: Callable[..., Path]) -> BenchResult:
    models = {"a|b": make_model("a.onnx"), "100%": make_model("b.onnx", width=32)}
    return bench(models, runs=20, slo=Slo(50.0, 1e-6))


def test_markdown(result: BenchResult) -> None:
    lines = markdown(result).splitlines()
    assert lines[0] == "| model | median ms | p90 ms | p95 ms | p99 ms | items/s | speed-up (95 %) |"
    assert lines[2].startswith("| a\\|b | ")
    assert lines[2].endswith("| baseline |")
    assert "- ❌ a|b: median ≤ 1e-06 ms: " in markdown(result)
    assert len({line.replace("\\|", "").count("|") for line in lines[:4]}) == 1


def test_annotations(result: BenchResult) -> None:
    lines = github(result).splitlines()
    assert lines[0].startswith("::error title=onnxdistill bench::a|b: median ≤ 1e-06 ms")
    assert lines[1].startswith("::error title=onnxdistill bench::100%25: ")


def test_junit(result: BenchResult) -> None:
    suite = ElementTree.fromstring(junit(result))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    cases = suite.findall("testcase")
    assert [case.get("classname") for case in cases] == ["a|b", "100%"]
    failure = cases[0].find("failure")
    assert failure is not None
    assert "missed" in str(failure.text)


def test_loads_and_outputs_are_told(make_model: Callable[..., Path]) -> None:
    models = {"a": make_model("a.onnx"), "b": make_model("b.onnx")}
    result = bench(models, seconds=0.2, clients=2, check_outputs=True)
    told = [f"under load: {load}" for load in result.loads] + [f"outputs: {one}" for one in result.agreements]
    assert len(told) == 3
    assert told[0].startswith("under load: a with 2 clients: ")
    assert [line.removeprefix("- ") for line in markdown(result).splitlines()[5:8]] == told
    assert [line.rpartition("bench::")[2] for line in github(result).splitlines()[2:5]] == [
        text.replace("%", "%25") for text in told
    ]
    others = ElementTree.fromstring(junit(result)).find("system-out")
    assert others is not None
    assert str(others.text).splitlines()[1:4] == told


def test_without_limits_every_case_is_told(make_model: Callable[..., Path]) -> None:
    plain = bench([make_model()], runs=20)
    assert github(plain).startswith("::notice title=onnxdistill bench::model: median ")
    suite = ElementTree.fromstring(junit(plain))
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")
