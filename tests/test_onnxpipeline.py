"""`onnxdistill compress --onnx` on small files: what ships, and every mistake a user can make."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxdistill import quantize_onnx
from onnxdistill.cli import main
from onnxdistill.data.samples import ArraySamples
from onnxdistill.device.feeds import read_inputs
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.session import Array, open_session
from onnxdistill.errors import LimitsMissedError, RecipeError, UsageError
from onnxdistill.recipe import onnx_recipe
from onnxdistill.report import Report, load_report
from onnxdistill.tasks.agreement import split_samples
from tests.onnxfiles import classifier, normal, saved, two_by_two

FILES = ["recipe.toml", "report.html", "report.json", "samples.npz", "student.onnx", "teacher.onnx"]
EARLIER = json.dumps({"schema_version": 1, "onnxdistill_version": "0", "rows": [], "recipe": {}})


def npz(path: Path, **arrays: Array) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def is_quantized(path: Path) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[Path]]:
    """Says that every int8 file is so many times faster than float32; returns what was asked about."""

    def answer(ratio: float) -> list[Path]:
        asked: list[Path] = []

        def compared(before: Path, after: Path, *_: object, **__: object) -> Estimate:
            asked.append(after)
            return Estimate(ratio, ratio - 0.01, ratio + 0.01)

        monkeypatch.setattr("onnxdistill.device.places.compare", compared)
        return asked

    return answer


def small(tmp_path: Path, **settings: object) -> Report:
    model = classifier(tmp_path / "small.onnx")
    data = npz(tmp_path / "data.npz", image=normal(64, 3, 8, 8))
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in {"bench__seconds": 0.05, **settings}.items()]
    return quantize_onnx(model, data, out=tmp_path / "run", overrides=overrides)


def test_the_command_ships_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For real: two convolutions large enough to be worth integers, on the pixels of images."""
    model = classifier(tmp_path / "net.onnx", size=16, width=32)
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for index in range(24):
        pixels = rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / ("deep" if index % 2 else "") / f"{index}.png")
    command = ["onnxdistill", "compress", "--onnx", model, "--data", tmp_path / "images", "--out", tmp_path / "run"]
    command += ["--log-file", tmp_path / "log.jsonl", "--set", "bench.seconds=0.1"]
    command += ["--set", "quantize.max_drop=100", "--set", "quantize.activations=uint8"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "log.jsonl", "net.onnx", "run"]
    report = load_report(tmp_path / "run" / "report.json")
    assert [row.stage for row in report.rows] == ["teacher", "quantize"]
    assert report.metric == "float32 agreement"
    assert report.teacher.score is not None
    assert report.teacher.score.value == 100.0
    assert report.teacher.macs == 256 * (32 * 27 + 32 * 288) + 32 * 5
    assert report.teacher.parameters == 32 * 27 + 32 * 288 + 5 * 32
    assert report.quantization is not None
    assert {name: part["images"] for name, part in report.data.items()} == {
        "calibration": 12, "validation": 6, "test": 6
    }  # fmt: skip
    assert any("ImageNet" in note for note in report.notes)
    for text in ("agreement", "100.00 %", "teacher", "quantize", str(tmp_path / "run" / "student.onnx")):
        assert text in shown.out
    assert "32 agreement against latency" in (tmp_path / "run" / "report.html").read_text()
    assert is_quantized(tmp_path / "run" / "student.onnx") == (report.student.precision == "int8")
    assert (tmp_path / "run" / "teacher.onnx").read_bytes() == model.read_bytes()
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())
    assert recipe["onnx"] == str(model)
    assert recipe["data"]["mean"] == [0.485, 0.456, 0.406]
    assert recipe["quantize"]["epochs"] == 0
    samples = read_inputs(tmp_path / "run" / "samples.npz")
    assert samples["image"].shape == (16, 3, 16, 16)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line["event"] == "result"] == ["data", "teacher", "quantize", "bench"]


def test_the_reported_agreement_is_that_of_the_files(tmp_path: Path, timed: Callable[[float], list[Path]]) -> None:
    timed(2.0)
    report = small(tmp_path, quantize__max_drop=100)
    assert report.student.precision == "int8"
    assert report.student.score is not None
    part = split_samples(64, 512, 1, 0)["test"]
    x = normal(64, 3, 8, 8)[part]
    assert report.data["test"] == {"images": 16, "sha256": ArraySamples({"image": normal(64, 3, 8, 8)}).digest(part)}
    answers = [
        open_session(tmp_path / "run" / f"{name}.onnx").run({"image": x})["logits"].argmax(1)
        for name in ("teacher", "student")
    ]
    assert report.student.score.value == pytest.approx(100 * np.mean(answers[0] == answers[1]))


def test_int8_that_is_not_faster_does_not_ship(tmp_path: Path, timed: Callable[[float], list[Path]]) -> None:
    asked = timed(0.9)
    report = small(tmp_path)
    assert asked
    assert [(row.stage, row.applied) for row in report.rows] == [("teacher", True), ("quantize", False)]
    assert any(note.startswith("quantize was measured and not used: int8 is 0.90× as fast") for note in report.notes)
    assert report.shipped
    assert report.student.precision == "float32"
    student, teacher = (tmp_path / "run" / f"{name}.onnx" for name in ("student", "teacher"))
    assert student.read_bytes() == teacher.read_bytes()


def test_what_is_too_inaccurate_does_not_ship_and_says_so(tmp_path: Path, timed: Callable[[float], list[Path]]) -> None:
    timed(2.0)
    # By their values, int8 never agrees with float32 wholly.
    report = small(tmp_path, agreement="values", quantize__max_drop=0)
    assert report.student.precision == "float32"
    assert any("% below float32; quantize.max_drop is 0." in note for note in report.notes)
    assert report.quantization is not None
    assert len(report.quantization.rungs) > 3
    assert all(rung.points is None or rung.points > 0 for rung in report.quantization.rungs)


def test_a_model_that_is_too_slow_for_intervals_ships_without(tmp_path: Path) -> None:
    """As on a small board: so few calls within the time tell a median, and nothing of how far off it is."""
    model = classifier(tmp_path / "slow.onnx", size=64, width=48)
    data = npz(tmp_path / "data.npz", image=normal(8, 3, 64, 64))
    asked = ["bench.seconds=0.01", "limits.min_speedup=0.01", "limits.max_latency_ms=10000"]
    report = quantize_onnx(model, data, out=tmp_path / "run", overrides=[*asked, "quantize.activations=uint8"])
    assert {(check.name, check.met, check.low, check.high) for check in report.limits} == {
        ("min_speedup", True, None, None),
        ("max_latency_ms", True, None, None),
    }
    assert load_report(tmp_path / "run" / "report.json") == report


def test_samples_do_not_go_with_the_folder_that_is_replaced(tmp_path: Path) -> None:
    model = classifier(tmp_path / "small.onnx")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text(EARLIER)
    data = npz(tmp_path / "run" / "samples.npz", image=normal(16, 3, 8, 8))
    before = data.read_bytes()
    with pytest.raises(UsageError, match=r"--data = .*samples.npz lies in a folder that this run replaces"):
        quantize_onnx(model, data, out=tmp_path / "run")
    assert data.read_bytes() == before


def test_other_machines_get_files_of_their_own(tmp_path: Path, timed: Callable[[float], list[Path]]) -> None:
    timed(2.0)
    report = small(tmp_path, quantize__max_drop=100, quantize__targets='["arm64", "cuda"]')
    names = [artifact.file for artifact in report.artifacts]
    assert names == ["teacher.onnx", "student.onnx", "student-arm64.onnx", "student-cuda.onnx"]
    for name in names:
        logits = open_session(tmp_path / "run" / name).run({"image": normal(2, 3, 8, 8)})["logits"]
        assert logits.shape == (2, 5)


def test_a_missed_limit_keeps_the_earlier_run(tmp_path: Path, timed: Callable[[float], list[Path]]) -> None:
    timed(2.0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text(EARLIER)
    with pytest.raises(LimitsMissedError, match=r"min_speedup = 1000: measured .*run\.missed\. Change \[limits\]"):
        small(tmp_path, limits__min_speedup=1000, quantize__max_drop=100)
    assert (tmp_path / "run" / "report.json").read_text() == EARLIER
    assert not load_report(tmp_path / "run.missed" / "report.json").shipped


def test_several_inputs_and_outputs_with_an_open_length(tmp_path: Path) -> None:
    data = npz(tmp_path / "data.npz", sequence=normal(48, 11, 6), extra=normal(48, 3, seed=1))
    report = quantize_onnx(
        two_by_two(tmp_path / "two.onnx"),
        data,
        out=tmp_path / "run",
        overrides=["bench.seconds=0.05", "quantize.activations=uint8"],
    )
    assert report.teacher.macs == 11 * 6 * 8 + 3 * 8 + 8 * 4
    assert report.teacher.score is not None
    assert report.teacher.score.value == 100.0
    samples = read_inputs(tmp_path / "run" / "samples.npz")
    assert {name: samples[name].shape for name in samples} == {"sequence": (16, 11, 6), "extra": (16, 3)}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch(tmp_path: Path, timed: Callable[[float], list[Path]], batch: int) -> None:
    timed(2.0)
    model = classifier(tmp_path / "fixed.onnx", batch=str(batch))
    data = npz(tmp_path / "data.npz", image=normal(33, 3, 8, 8))
    # So little may be lost that the whole ladder is climbed.
    asked = ["bench.seconds=0.05", "agreement=values", "quantize.max_drop=0"]
    report = quantize_onnx(model, data, out=tmp_path / "run", overrides=asked)
    assert report.recipe["bench"]["batch"] == batch
    assert report.teacher.macs == 64 * (16 * 27 + 16 * 144) + 16 * 5
    assert read_inputs(tmp_path / "run" / "samples.npz")["image"].shape[0] == batch
    with pytest.raises(UsageError, match=f"takes {batch} samples at once, and bench.batch = 3"):
        quantize_onnx(model, data, out=tmp_path / "run", overrides=["bench.batch=3"])


def test_a_run_that_is_ended_remembers_what_was_timed(
    tmp_path: Path, timed: Callable[[float], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed(2.0)

    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onnxdistill.device.places.bench", ended)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path, quantize__max_drop=100)
    assert (tmp_path / ".run.resume").is_dir()
    first = len(asked)
    assert first > 0
    small(tmp_path, quantize__max_drop=100)
    assert len(asked) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "run", "small.onnx"]


class TestRecipe:
    def test_defaults_come_from_the_file(self, tmp_path: Path) -> None:
        recipe = onnx_recipe(tmp_path / "my net.v2.onnx", tmp_path, ["bench.threads=2", "data.calibration=7"])
        assert recipe.name == "my net.v2"
        assert recipe.quantize.epochs == 0
        assert (recipe.bench.threads, recipe.data.calibration, recipe.data.mean) == (2, 7, None)

    @pytest.mark.parametrize(
        ("item", "part"),
        [
            ("quantize.max_dro=1", "quantize.max_dro: unknown key, the nearest valid one is 'max_drop'"),
            ("limit.min_speedup=1", "limit: unknown key, the nearest valid one is 'limits'"),
            ("distill.epochs=1", "distill: unknown key"),
            ("bench.threads=many", "bench.threads = 'many'"),
            ("data.mean=[0.5]", "data.mean and data.std go together"),
            ("quantize.epochs=2", "quantize.epochs and quantize.learning_rate have no effect on an ONNX file"),
            ("quantize.learning_rate=0.1", "quantize.epochs and quantize.learning_rate have no effect"),
            ("quantize=", "quantize: missing"),
            ("name=a/b", "name = 'a/b': it names the run folder"),
            ("agreement=all", "agreement = 'all'"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, item: str, part: str) -> None:
        with pytest.raises(RecipeError) as caught:
            onnx_recipe(tmp_path / "net.onnx", tmp_path, [item])
        assert part in str(caught.value)
        assert str(caught.value).startswith("What is asked of the ONNX file is not valid: ")


class TestRefusals:
    """Each is one paragraph with exit code 2, and leaves nothing behind."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        classifier(tmp_path / "net.onnx")
        npz(tmp_path / "data.npz", image=normal(16, 3, 8, 8))
        return tmp_path

    @pytest.fixture
    def refuse(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., None]:
        def refused(*arguments: object, parts: tuple[str, ...]) -> None:
            before = sorted(place.rglob("*"))
            command = ["onnxdistill", "compress", *map(str, arguments), "--out", str(place / "run")]
            monkeypatch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as ended:
                main()
            message = capsys.readouterr().err
            assert ended.value.code == 2, message
            assert len(message.strip().splitlines()) == 1
            for part in parts:
                assert part in message
            assert sorted(place.rglob("*")) == before

        return refused

    def test_what_excludes_each_other(self, place: Path, refuse: Callable[..., None]) -> None:
        model, data = place / "net.onnx", place / "data.npz"
        refuse("recipe.toml", "--onnx", model, "--data", data, parts=("recipe.toml and --onnx exclude each other",))
        refuse("recipe.toml", "--data", data, parts=("--data is for an ONNX file",))
        refuse("--data", data, parts=("--data is for an ONNX file",))
        refuse("--onnx", model, parts=("--onnx needs samples",))
        refuse("--onnx", model, "--data", data, "--time-budget", "1h", parts=("--time-budget is for trainings",))
        refuse(parts=("There is nothing to compress. Name a recipe",))

    def test_no_model(self, place: Path, refuse: Callable[..., None]) -> None:
        data = place / "data.npz"
        refuse("--onnx", place / "none.onnx", "--data", data, parts=("There is no file", "none.onnx"))
        refuse("--onnx", place, "--data", data, parts=("is a folder",))
        (place / "text.onnx").write_text("Dear reader,\nthis is no model.\n")
        refuse("--onnx", place / "text.onnx", "--data", data, parts=("text.onnx is a text file", "'Dear reader,'"))

    def test_nothing_to_quantize(self, place: Path, refuse: Callable[..., None]) -> None:
        saved(place / "relu.onnx", "g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu (x) }")
        refuse("--onnx", place / "relu.onnx", "--data", place / "data.npz", parts=("no float weights to quantize",))

    def test_no_inputs(self, place: Path, refuse: Callable[..., None]) -> None:
        saved(place / "fixed.onnx", "g () => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (w, w) }")
        refuse("--onnx", place / "fixed.onnx", "--data", place / "data.npz", parts=("has no inputs",))

    def test_an_input_that_is_an_output(self, place: Path, refuse: Callable[..., None]) -> None:
        text = "g (float[N,2] x) => (float[N,2] x, float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"
        saved(place / "both.onnx", text)
        npz(place / "pairs.npz", x=normal(16, 2))
        refuse("--onnx", place / "both.onnx", "--data", place / "pairs.npz", parts=("gives its input 'x' back",))

    def test_quantized_already(self, place: Path, refuse: Callable[..., None]) -> None:
        student = Path("models/digits/student.onnx").absolute()
        refuse("--onnx", student, "--data", place / "data.npz", parts=("is quantized already", "the float model"))

    def test_wrong_samples(self, place: Path, refuse: Callable[..., None]) -> None:
        model = place / "net.onnx"
        npz(place / "few.npz", image=normal(7, 3, 8, 8))
        refuse("--onnx", model, "--data", place / "few.npz", parts=("There are 7 samples, and at least 8",))
        npz(place / "wide.npz", image=normal(16, 3, 9, 9))
        refuse("--onnx", model, "--data", place / "wide.npz", parts=("wide.npz: the array 'image' is [16, 3, 9, 9]",))
        npz(place / "bytes.npz", image=np.zeros((16, 3, 8, 8), np.uint8))
        refuse("--onnx", model, "--data", place / "bytes.npz", parts=("bytes.npz: the array 'image' is uint8",))
        refuse("--onnx", model, "--data", place / "none", parts=("none cannot be read",))
        (place / "empty").mkdir()
        refuse("--onnx", model, "--data", place / "empty", parts=("empty holds no images",))

    def test_settings(self, place: Path, refuse: Callable[..., None]) -> None:
        both = ("--onnx", place / "net.onnx", "--data", place / "data.npz")
        refuse(*both, "--set", "bench.provider=cuda", parts=("no execution provider 'cuda'",))
        refuse(*both, "--set", "bench.batch=65536", "--set", "bench.thread=1", parts=("bench.thread: unknown key",))
        refuse(*both, "--log-file", place / "net.onnx", parts=("is read by this run",))
