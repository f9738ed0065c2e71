"""`bench` on real models: settings, inputs, what it refuses and what it writes; nothing that depends on their times."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxdistill.device.bench import bench
from onnxdistill.device.cases import Case
from onnxdistill.device.earlier import read_result
from onnxdistill.device.feeds import InputSource, random_feeds, read_inputs
from onnxdistill.device.host import CpuTimes, HostFacts, Processor, read_host
from onnxdistill.device.jsonfile import json_text
from onnxdistill.device.measuring import doubts
from onnxdistill.device.measuring.openings import Openings
from onnxdistill.device.result import BenchResult
from onnxdistill.device.runtime import available_providers
from onnxdistill.device.session import Session, SessionSettings, open_session
from onnxdistill.device.verdicts import Slo
from onnxdistill.errors import DataError, FallbackError, UsageError
from tests.compress.commands import run_here
from tests.device.commands import ROOT, run


def test_the_name_of_the_processor_has_no_double_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages would not keep them, and what is kept is found by the name."""
    named = Processor("Intel(R) Atom(TM) CPU  E3845  @ 1.91GHz", 4, ())
    monkeypatch.setattr("onnxdistill.device.host.read_processor", lambda: named)
    host = read_host()
    assert host.cpu == "Intel(R) Atom(TM) CPU E3845 @ 1.91GHz"
    # Of results that have them from before, too.
    assert HostFacts.from_json({**host.to_json(), "cpu": named.name}) == host


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 2}'])
def test_what_is_no_earlier_result(tmp_path: Path, content: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"no JSON|no benchmark result|schema version|damaged"):
        read_result(path)


def test_outputs_are_compared(make_model: Callable[..., Path]) -> None:
    first, second = make_model("a.onnx"), make_model("b.onnx")
    (found,) = bench([first, second], runs=5, check_outputs=True).agreements
    assert (found.baseline, found.model, found.output, found.samples) == ("a", "b", "y", 64)
    assert found.max_absolute == 0.0
    assert found.argmax_percent == 100.0


def test_given_inputs_are_cut_into_batches(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, x=np.zeros((5, 3, 8, 8), np.float32))
    result = bench(
        [make_model("a.onnx"), make_model("b.onnx")], batch=[1, 2], runs=5, inputs=read_inputs(path), check_outputs=True
    )
    assert {case.inputs["x"][0] for case in result.cases} == {1, 2}
    assert result.agreements[0].samples == 5
    np.save(tmp_path / "one.npy", np.zeros((5, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match=r"one\.npy holds no named arrays\. Write it with numpy\.savez"):
        read_inputs(tmp_path / "one.npy")
    with pytest.raises(UsageError, match="'x' is given with 5 items, and a batch of 6"):
        bench([make_model()], batch=6, runs=5, inputs=read_inputs(path))


def test_given_inputs_are_the_same_work_for_all_models(make_model: Callable[..., Path]) -> None:
    inputs = {"x": np.zeros((8, 3, 8, 8), np.float32)}
    fixed = make_model("fixed.onnx", shape=(8, 3, 8, 8))
    with pytest.raises(UsageError, match=r"fixes the first dimension of its inputs to 8, and a batch of 2"):
        bench([fixed], batch=[8, 2], runs=5, inputs=inputs)
    with pytest.raises(UsageError, match=r"fixes the first dimension of its inputs to 8, and a batch of 1"):
        bench([make_model("open.onnx"), fixed], runs=5, inputs=inputs)
    with pytest.raises(UsageError, match=r"'x' of open is \[1, 3, 8, 8\] and that of fixed \[8, 3, 8, 8\]"):
        InputSource({}, inputs, 0).check_same_work(
            {"open": {"x": inputs["x"][:1]}, "fixed": inputs}, {"open": 1, "fixed": 1}
        )
    with pytest.raises(UsageError, match=r"'x' is given as \[1, 3, 8, 8\], and --shape asks for \[1, 3, 9, 9\]"):
        bench([make_model("open.onnx")], runs=5, inputs=inputs, shapes={"x": (1, 3, 9, 9)})
    # The shape of all items, and of a batch of them.
    for first in (8, 2):
        shapes = {"x": (first, 3, 8, 8)}
        result = bench([make_model("open.onnx")], batch=2, runs=5, inputs=inputs, shapes=shapes)
        assert result.cases[0].inputs["x"][0] == 2
    with pytest.raises(UsageError, match=r"'x' is given as \[2, 3, 8, 8\], and --shape asks for \[3, 3, 8, 8\]"):
        bench([make_model("open.onnx")], batch=2, runs=5, inputs=inputs, shapes={"x": (3, 3, 8, 8)})
    # A first dimension that is not the batch.
    assert bench([fixed], batch=2, runs=5, inputs=inputs, shapes={"x": (8, 3, 8, 8)}).cases[0].inputs["x"][0] == 8
    result = bench([make_model("open.onnx"), fixed], batch=8, runs=5, inputs=inputs)
    assert [case.inputs["x"][0] for case in result.cases] == [8, 8]


def test_clients_have_bindings_of_their_own(pair: tuple[Path, Path]) -> None:
    session = open_session(pair[0], SessionSettings(io_binding=True))
    feeds = random_feeds(session, 1, {}, np.random.default_rng(0))
    bound: list[object] = []
    bind, run = session._bound, session.shared_runner(feeds)
    session._bound = lambda feeds: bound.append(bind(feeds)) or bound[-1]  # type: ignore[func-returns-value,method-assign]

    def client() -> None:
        for _ in range(3):
            run()

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in bound}) == len(bound) == 2


def test_no_memory_is_known_where_a_process_cannot_be_started(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    result = bench([pair[0]], runs=5)
    assert result.cases[0].memory is None
    assert result.cases[0].latency_ms.count == 5


def test_without_a_warm_up_turns_are_as_long_as_a_call_allows(pair: tuple[Path, Path]) -> None:
    """Eight calls a turn of a model of seconds would take minutes."""
    openings = Openings({"a": Case("a", pair[0], SessionSettings(), 1)}, feeds_of, np.random.default_rng(0), 0)
    openings.time(calls=1)
    warmup = openings.timings["a"].warmup
    assert warmup.calls == 0
    assert warmup.latency_ms > 0


def feeds_of(_case: Case, session: Session) -> dict[str, Any]:
    return random_feeds(session, 1, {}, np.random.default_rng(0))


def test_profiles_of_every_case(pair: tuple[Path, Path]) -> None:
    result = bench(pair, runs=5, profile=True)
    assert [one.case for one in result.profiles] == ["small", "large"]
    for one in result.profiles:
        assert any(row.op_type in ("Conv", "FusedConv") for row in one.profile.op_types)
    assert BenchResult.from_json(json.loads(json.dumps(result.to_json()))).profiles == result.profiles


def test_a_machine_that_was_busy_meanwhile() -> None:
    host = replace(read_host(), usable_cpus=4, logical_cpus=4, cpu_limit=None)
    begin = CpuTimes(wall_s=100.0, busy_s=50.0, own_s=10.0)
    quiet = CpuTimes(wall_s=110.0, busy_s=60.5, own_s=20.0)  # 0.05 others
    busy = CpuTimes(wall_s=110.0, busy_s=75.0, own_s=20.0)  # 1.5 others
    assert doubts.of_machine(host, 1, begin, quiet) == []
    assert doubts.of_machine(host, 1, begin, busy) == ["Other processes kept 1.5 of 4 CPUs busy meanwhile."]
    assert doubts.of_machine(host, 5, begin, quiet) == ["5 threads share 4 usable CPUs."]
    (reason,) = doubts.of_machine(replace(host, load_average=3.5), 1, None, None)
    assert "a load average of 3.5" in reason


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"runs": 5, "seconds": 1.0}, "Both a number of runs and a number of seconds"),
        ({"seconds": math.inf}, "above 0 seconds and end, and inf were"),
        ({"runs": 5, "precision": 0.01}, "something that decides how many are needed"),
        ({"precision": 1.5}, "above 0 and below 100 %, and 150.000%"),
        ({"max_regression": 0.05}, "needs a baseline"),
        ({"batch": []}, "has no value"),
        ({"batch": [1, 0]}, "at least 1 item"),
        ({"runs": 10, "slo": Slo(99.0, 1.0)}, "10 timed calls do not support p99"),
        ({"rate": 5.0, "slo": Slo(99.0, 1.0)}, "50 requests do not support p99"),
        ({"precision": 0.01, "max_regression": 0.05}, "each decides when to end"),
        ({"check_outputs": True}, "another model, and there is one"),
        ({"clients": 0}, "1 to 1000 clients, and 0 were"),
        ({"rate": 1e9}, "more than 5,000,000"),
        ({"provider_options": {"cuda": {"a": "b"}}}, "options of the provider 'cuda', which is not asked for"),
        ({"provider_options": {"cpu": {"a": "b"}}}, "'cpu' takes no options, and 'a' would be ignored"),
    ],
)
def test_refusals(make_model: Callable[..., Path], how: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench([make_model()], **how)  # type: ignore[arg-type]  # one of the options


def test_what_is_written_is_there_though_nobody_reads_the_table(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "onnxdistill", "bench", str(make_model()), "--runs", "20"]
    json_path = tmp_path / "a.json"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--json", str(json_path)], stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT
        )
    assert done.returncode == 2
    assert json.loads(json_path.read_text())["cases"]
    # Nor is the table lost where a file cannot be written.
    lost = subprocess.run([*command, "--json", "/dev/full"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert lost.returncode == 2
    assert "/dev/full cannot be written" in lost.stderr
    assert "median" in lost.stdout
    script = f"{' '.join(command)} --json {json_path} >&-"
    closed = subprocess.run(script, shell=True, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_outputs_that_are_not_finite_survive_json(tmp_path: Path) -> None:
    for name, operator in (("a", "Identity"), ("b", "Log")):
        graph = helper.make_graph(
            [helper.make_node(operator, ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
    result = bench([tmp_path / "a.onnx", tmp_path / "b.onnx"], runs=10, check_outputs=True)
    again = BenchResult.from_json(json.loads(json_text(result.to_json())))
    assert again == result
    assert math.isinf(again.agreements[0].max_absolute)


def test_an_earlier_case_that_was_run_otherwise(make_model: Callable[..., Path]) -> None:
    model = make_model(shape=("batch", 3, "height", 8))
    earlier = bench([model], runs=60, shapes={"x": (1, 3, 8, 8)})
    with pytest.raises(UsageError, match=r"on other inputs: x \[1, 3, 8, 8\]; here they are x \[1, 3, 9, 8\]"):
        bench([model], earlier=earlier, shapes={"x": (1, 3, 9, 8)})
    with pytest.raises(UsageError, match="batch 1, on cpu, optimization level all, io binding; it has: model"):
        bench([model], earlier=earlier, shapes={"x": (1, 3, 8, 8)}, io_binding=True)


@pytest.mark.parametrize("time_ms", ["a", 0, -1.0, None])
def test_an_earlier_result_with_times_that_are_none(pair: tuple[Path, Path], time_ms: object) -> None:
    data = bench(pair[:1], runs=10).to_json()
    data["cases"][0]["times_ms"][0][0] = time_ms
    with pytest.raises(DataError, match=r"damaged: .* is no time of a call"):
        BenchResult.from_json(data)


def test_a_fallback_that_is_accepted_is_told(make_model: Callable[..., Path]) -> None:
    with pytest.raises(FallbackError, match="has no execution provider 'rknpu'"):
        bench([make_model()], provider="rknpu", runs=5)
    result = bench([make_model()], provider="rknpu", allow_fallback=True, runs=5)
    assert result.cases[0].provider == "CPUExecutionProvider"
    assert "Nothing of it runs on rknpu: all of it runs on the CPU." in result.cases[0].shaky


@pytest.mark.skipif("CUDAExecutionProvider" not in available_providers(), reason="this ONNX Runtime has no CUDA")
def test_cuda_with_bound_inputs_and_a_graph(pair: tuple[Path, Path]) -> None:
    options = {"cuda": {"enable_cuda_graph": "1"}}
    result = bench(pair, provider="cuda", provider_options=options, io_binding=True, runs=50)
    assert {case.provider for case in result.cases} == {"CUDAExecutionProvider"}


def test_the_command_reads_lists_and_options(pair: tuple[Path, Path]) -> None:
    done = run(pair[0], "--threads", "1,2", "--batch", "1, 4", "--runs", 5, "--opt-level", "all,basic")
    assert done.returncode == 0, done.stderr
    assert "small, 2 threads, batch 4, basic" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "1,x"], "'x' is not a valid integer"),
        (["--threads", "1,,2"], "'' is not a valid integer"),
        (["--opt-level", "most"], "'most' is not one of"),
        (["--precision", "1"], "'1' does not read as 5%"),
        (["--max-regression", "x%"], "'x%' does not read as 5%"),
        (["--slo", "p12=1ms"], "There is no p12"),
        (["--provider-option", "a=b"], "does not read as PROVIDER.KEY=VALUE"),
        (["--inputs", "none.npz"], "none.npz cannot be read"),
        (["--inputs", "README.md"], "README.md is no .npz file of arrays"),
        (["--baseline", "none.json"], "none.json cannot be read"),
        (["--baseline", "none.onnx", "--max-regression", "5%"], "none.onnx"),
        (["--format", "junit", "--json", "-"], "Both --format and --json -"),
        (["--json", "/tmp/same", "--html", "/tmp/../tmp/same"], "Give each its own file"),
        (["--html", "-"], "A page does not go to standard output"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    done = run_here(monkeypatch, capsys, "bench", "models/digits/student.onnx", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_shape_of_one_batch_stands_for_the_others(make_model: Callable[..., Path]) -> None:
    model = make_model("open.onnx", shape=("batch", 3, "height", "width"))
    result = bench([model], batch=[1, 4], runs=5, shapes={"x": (1, 3, 16, 8)})
    assert [case.inputs["x"] for case in result.cases] == [(1, 3, 16, 8), (4, 3, 16, 8)]
    with pytest.raises(UsageError, match="has a batch of 2, and a batch of 1 was asked for"):
        bench([model], batch=[1, 4], runs=5, shapes={"x": (2, 3, 16, 8)})
