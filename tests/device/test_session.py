from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxdistill.device import runtime
from onnxdistill.device import session as device_session
from onnxdistill.device.cases import Case
from onnxdistill.device.feeds import random_feeds
from onnxdistill.device.measuring.doubts import of_placement
from onnxdistill.device.probe import probe_model, probe_provider
from onnxdistill.device.session import Port, SessionSettings, _device_id, open_session
from onnxdistill.errors import FallbackError, MissingPackageError, ModelFileError, ProviderError, UsageError


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_describes_inputs_and_outputs(make_model) -> None:
    session = open_session(make_model())
    assert session.inputs == (Port("x", np.dtype(np.float32), ("batch", 3, 8, 8)),)
    assert session.outputs == (Port("y", np.dtype(np.float32), ("batch", 4, 8, 8)),)
    assert str(session.inputs[0]) == "x float32[batch, 3, 8, 8]"
    assert set(session.nodes_by_provider) == {"CPUExecutionProvider"}


def test_runs_from_names_to_arrays_as_onnx_runtime_does(make_model) -> None:
    path = make_model()
    x = rng().standard_normal((2, 3, 8, 8)).astype(np.float32)
    outputs = open_session(path).run({"x": x})
    assert list(outputs) == ["y"]
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    np.testing.assert_allclose(outputs["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_lends_what_a_run_returns(make_model, elem_type: int) -> None:
    session = open_session(make_model(elem_type=elem_type), SessionSettings())
    (port,) = session.inputs
    first, second = (np.random.default_rng(seed).random((2, 3, 8, 8)).astype(port.dtype) for seed in (0, 1))
    lent = session.lend({"x": first})
    assert not lent["y"].flags.writeable
    session.lend({"x": second})  # has memory of its own while the first is read
    np.testing.assert_array_equal(lent["y"], session.run({"x": first})["y"], strict=True)
    for wrong, message in (({}, "no value for its input 'x'"), ({"x": first.astype(np.float64)}, "given as float64")):
        with pytest.raises(UsageError, match=message):
            session.lend(wrong)


def test_lends_numbers_and_text() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[n] x, float s) => (float t, float[n] y) {'
    model = onnx.parser.parse_model(text + " t = Add(s, s)\n y = Mul(x, s) }")
    feeds = {"x": np.ones(3, np.float32), "s": np.array(2, np.float32)}
    session = open_session(model.SerializeToString())
    assert session.lend(feeds)["t"].shape == session.run(feeds)["t"].shape == ()
    text = '<ir_version: 10, opset_import: ["" : 20]> g (string[n] x) => (string[n] y) { y = Identity(x) }'
    session = open_session(onnx.parser.parse_model(text).SerializeToString())
    words = np.array(["a", "b"], object)
    assert session.lend({"x": words})["y"].tolist() == ["a", "b"]


def test_opens_the_content_of_a_file(make_model) -> None:
    assert open_session(make_model().read_bytes()).inputs[0].name == "x"


def test_settings_reach_onnx_runtime(make_model) -> None:
    session = open_session(make_model(), SessionSettings(threads=2, optimization_level="disabled"))
    options = session._native.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize("threads", [1, 2])
def test_workers_do_not_wait_busily_for_a_next_run(make_model, threads: int) -> None:
    options = open_session(make_model(), SessionSettings(threads=threads))._native.get_session_options()
    entry = "session.force_spinning_stop"
    if threads > 1:
        assert options.get_session_config_entry(entry) == "1"
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry(entry)


def test_at_least_one_thread() -> None:
    with pytest.raises(UsageError, match="at least 1 thread"):
        SessionSettings(threads=0)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "gets no value for its input 'x'"),
        ({"x": np.zeros((1, 3, 8, 8), np.float32), "z": np.zeros(1)}, "has no input 'z'"),
        ({"x": np.zeros((1, 3, 8, 8))}, "the input 'x' is given as float64"),
        ({"x": np.zeros((1, 3, 8, 9), np.float32)}, r"is given as \[1, 3, 8, 9\]"),
        ({"x": np.zeros((3, 8, 8), np.float32)}, r"is given as \[3, 8, 8\]"),
    ],
)
def test_inputs_are_checked_and_the_message_says_what_fits(make_model, feeds, message) -> None:
    session = open_session(make_model())
    with pytest.raises(UsageError, match=message) as caught:
        session.run(feeds)
    assert "takes x float32[batch, 3, 8, 8]." in str(caught.value)


def test_model_that_stops_while_it_runs(make_model) -> None:
    session = open_session(make_model(shape=("batch", "channels", 8, 8)))
    with pytest.raises(ModelFileError, match=r"does not run with x \[1, 5, 8, 8\]") as caught:
        session.run({"x": np.zeros((1, 5, 8, 8), np.float32)})
    assert ".cc:" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "full"),
    [
        ("cpu", "CPUExecutionProvider"),
        ("CUDA", "CUDAExecutionProvider"),
        ("tensorrtexecutionprovider", "TensorrtExecutionProvider"),
    ],
)
def test_names_of_providers(asked: str, full: str) -> None:
    assert runtime.full_name(asked) == full
    assert runtime.short_name(full) == asked.lower().removesuffix("executionprovider")


def test_unknown_provider_names_the_nearest() -> None:
    with pytest.raises(ProviderError, match=r"no execution provider 'cudda'\. Did you mean 'cuda'"):
        runtime.full_name("cudda")
    with pytest.raises(ProviderError, match="Known are cpu, cuda"):
        runtime.full_name("zzz")


def test_every_short_name_is_a_provider_that_onnx_runtime_knows() -> None:
    # ACL is built for ARM only, and not in the list of every release.
    known = {*onnxruntime.get_all_providers(), "ACLExecutionProvider"}
    assert set(runtime.PROVIDERS.values()) <= known


def test_provider_that_is_not_compiled_in_names_those_that_are(make_model) -> None:
    with pytest.raises(FallbackError, match=r"has no execution provider 'rknpu'; it has: .*cpu"):
        open_session(make_model(), SessionSettings(provider="rknpu"))


def test_silent_fallback_is_refused(make_model, monkeypatch) -> None:
    """ONNX Runtime goes on with the CPU; only the list of the session's providers tells."""
    monkeypatch.setattr(runtime, "available_providers", lambda: ("RknpuExecutionProvider",))
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(FallbackError, match="'rknpu' is compiled in and does not start on this machine"),
    ):
        open_session(make_model(), SessionSettings(provider="rknpu"))


def test_provider_that_takes_no_node_is_refused(make_model, monkeypatch) -> None:
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs a provider that starts everywhere and takes nothing")
    monkeypatch.setattr(runtime, "available_providers", lambda: ("AzureExecutionProvider",))
    with pytest.raises(FallbackError, match="takes no node of"):
        open_session(make_model(), SessionSettings(provider="AzureExecutionProvider"))


def test_a_runtime_that_does_not_tell_who_runs_what_is_refused(make_model, monkeypatch) -> None:
    """As older ones, on another machine: all nodes may be on the CPU, and nobody would know."""
    session = open_session(make_model())
    session.provider = "XnnpackExecutionProvider"
    session.tells_placement, session.nodes_by_provider = False, {}
    with pytest.raises(ProviderError, match="does not tell which nodes the execution provider 'xnnpack' takes"):
        device_session._check_not_fallen_back(session, ["XnnpackExecutionProvider"])
    # With --allow-fallback.
    case = Case("m", Path("m.onnx"), SessionSettings(provider=session.provider, allow_fallback=True), 1)
    (doubt,) = of_placement(session, case)
    assert doubt == "Which of its nodes run on xnnpack, if any, this ONNX Runtime does not tell."


def test_remote_provider_is_not_offered() -> None:
    assert "AzureExecutionProvider" not in runtime.available_providers()
    assert "CPUExecutionProvider" in runtime.available_providers()


def test_damaged_runtime_is_explained(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", type(sys)("onnxruntime"))
    with pytest.raises(MissingPackageError, match="has no InferenceSession"):
        runtime.load_runtime()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libfoo.so: cannot open shared object file')", "libfoo.so: cannot open"),
        # Made for another Python, or its source code.
        ("import onnxruntime_that_is_not_there", "No module named 'onnxruntime_that_is_not_there'"),
    ],
)
def test_runtime_that_does_not_load_is_explained(monkeypatch, tmp_path: Path, code: str, reason: str) -> None:
    (tmp_path / "onnxruntime.py").write_text(code)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=f"does not load: {reason}"):
        runtime.load_runtime()


def test_outputs_that_numpy_has_no_type_for_are_explained(tmp_path: Path) -> None:
    ports = [
        helper.make_tensor_value_info(name, kind, [1, 3])
        for name, kind in (("x", TensorProto.FLOAT), ("y", TensorProto.BFLOAT16))
    ]
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)], "g", ports[:1], ports[1:]
    )
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(ModelFileError, match=r"half\.onnx does not run with x \[1, 3\]: No corresponding Numpy type"):
        open_session(path).run({"x": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize(("options", "number"), [({}, 0), ({"device_id": "1"}, 1), ({"device_id": "x"}, 0)])
def test_bound_inputs_lie_on_the_device_that_was_asked_for(options: dict[str, str], number: int) -> None:
    assert _device_id(SessionSettings(provider="cuda", provider_options=options)) == number


def test_nothing_but_the_run_writes_to_the_terminal(make_model, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(make_model().read_bytes()[:50])
    code = (
        "import sys; from pathlib import Path\n"
        "from onnxdistill.device.session import open_session\n"
        "from onnxdistill.errors import ModelFileError\n"
        "try: open_session(Path(sys.argv[1]))\n"
        "except ModelFileError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, damaged], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_probe_is_a_valid_model_and_the_cpu_computes_it() -> None:
    import onnx

    model = onnx.load_from_string(probe_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    assert probe_provider("cpu") == ""
    assert "has no execution provider" in probe_provider("rknpu")


def test_random_feeds_fill_the_batch(make_model) -> None:
    feeds = random_feeds(open_session(make_model()), 5, {}, rng())
    assert feeds["x"].shape == (5, 3, 8, 8)
    assert feeds["x"].dtype == np.float32
    again = random_feeds(open_session(make_model()), 5, {}, rng())
    np.testing.assert_array_equal(feeds["x"], again["x"])


@pytest.mark.parametrize(
    ("elem_type", "low", "high"),
    [
        (TensorProto.UINT8, 0, 255),
        (TensorProto.INT8, -128, 127),
        (TensorProto.INT64, 0, 1),
        (TensorProto.BOOL, 0, 1),
        (TensorProto.FLOAT16, -8, 8),
    ],
)
def test_random_feeds_of_every_kind_run(make_model, elem_type, low, high) -> None:
    session = open_session(make_model(elem_type=elem_type))
    feeds = random_feeds(session, 4, {}, rng())
    assert low <= feeds["x"].min() < feeds["x"].max() <= high
    assert session.run(feeds)["y"].shape == (4, 4, 8, 8)


def test_text_cannot_be_made_up(make_model) -> None:
    session = open_session(make_model(elem_type=TensorProto.STRING))
    with pytest.raises(UsageError, match="random numbers cannot fill"):
        random_feeds(session, 1, {}, rng())


def test_fixed_batch_says_which_one(make_model) -> None:
    session = open_session(make_model(shape=(4, 3, 8, 8)))
    assert random_feeds(session, 4, {}, rng())["x"].shape == (4, 3, 8, 8)
    with pytest.raises(UsageError, match=r"to 4, and a batch of 1 was asked for\. Use --batch 4"):
        random_feeds(session, 1, {}, rng())
    # Given in full, the first dimension need not be the batch.
    assert random_feeds(session, 1, {"x": (4, 3, 8, 8)}, rng())["x"].shape == (4, 3, 8, 8)


def test_open_dimensions_need_a_shape(make_model) -> None:
    session = open_session(make_model(shape=("batch", 3, "height", "width")))
    with pytest.raises(UsageError, match=r"'height' of its input x .* open.* --shape x=1x3x224x224"):
        random_feeds(session, 1, {}, rng())
    assert random_feeds(session, 2, {"x": (2, 3, 16, 8)}, rng())["x"].shape == (2, 3, 16, 8)
    with pytest.raises(UsageError, match=r"has a batch of 2, and a batch of 1 was asked for\. Add --batch 2"):
        random_feeds(session, 1, {"x": (2, 3, 16, 8)}, rng())
    with pytest.raises(UsageError, match="x=1x4x16x8 does not fit the input"):
        random_feeds(session, 1, {"x": (1, 4, 16, 8)}, rng())
