"""Agreement with a float model: by hand, on models that return what they get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdistill.data.samples import ArraySamples
from onnxdistill.device.session import Array, SessionSettings, open_session
from onnxdistill.errors import DataError, ModelFileError
from onnxdistill.tasks.agreement import FloatAgreement, _same, _squares, fixed_batch, split_samples
from onnxdistill.tasks.base import Feeds, paired_interval
from tests.onnxfiles import normal, saved


def identity(path: Path, port: str) -> Path:
    return saved(path / "same.onnx", f"g ({port} x) => ({port} y) {{ y = Identity (x) }}")


def agreement(path: Path, port: str, x: Array, compared: str = "classes") -> FloatAgreement:
    """With a model that returns its input."""
    chosen = "values" if compared == "values" else "classes"
    return FloatAgreement(ArraySamples({"x": x}), open_session(identity(path, port)), chosen, calibration=512, seed=0)


@given(st.integers(8, 300), st.integers(1, 100), st.integers(1, 3), st.integers(0, 5))
def test_splits_are_disjoint_and_the_same_every_time(count: int, calibration: int, batch: int, seed: int) -> None:
    if count < 4 * batch:
        return
    parts = split_samples(count, calibration, batch, seed)
    assert list(parts) == ["calibration", "validation", "test"]
    every = np.concatenate(list(parts.values()))
    assert len(set(every.tolist())) == len(every)
    assert every.min() >= 0
    assert every.max() < count
    assert all(len(part) and len(part) % batch == 0 for part in parts.values())
    assert len(parts["validation"]) == len(parts["test"]) == count // 4 // batch * batch
    assert len(parts["calibration"]) <= max(batch, min(calibration, count // 2))
    again = split_samples(count, calibration, batch, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_the_seed_draws_the_splits() -> None:
    assert not np.array_equal(split_samples(100, 50, 1, 0)["test"], split_samples(100, 50, 1, 1)["test"])


@pytest.mark.parametrize(("count", "batch", "fewest"), [(7, 1, 8), (15, 4, 16)])
def test_too_few_samples(count: int, batch: int, fewest: int) -> None:
    with pytest.raises(DataError, match=f"There are {count} samples, and at least {fewest} are needed"):
        split_samples(count, 512, batch, 0)


def test_the_float_model_agrees_with_itself(tmp_path: Path) -> None:
    task = agreement(tmp_path, "float[N,3]", normal(40, 3))
    score = task.score(lambda feeds: {"y": feeds["x"]}, "test")
    assert (score.value, score.samples) == (100.0, 10)
    assert score.interval[0] == pytest.approx(72.25, abs=0.01)  # Wilson's, of 10 of 10
    assert score.interval[1] == 100.0
    assert score.correct is not None
    assert score.correct.all()


def test_classes_that_differ_are_counted_by_sample(tmp_path: Path) -> None:
    x = np.tile(np.array([[1.0, 0.0]], np.float32), (40, 1))
    x[:, 1] = np.arange(40) / 100  # tells the samples apart
    task = agreement(tmp_path, "float[N,2]", x)
    parts = split_samples(40, 512, 1, 0)

    def wrong_for_three(feeds: Feeds) -> Feeds:
        is_wrong = np.isin(feeds["x"][:, 1], x[parts["test"][[0, 4, 9]], 1])
        return {"y": np.where(is_wrong[:, None], feeds["x"][:, ::-1], feeds["x"])}

    whole = task.score(lambda feeds: {"y": feeds["x"]}, "test")
    score = task.score(wrong_for_three, "test")
    assert score.value == 70.0
    assert score.correct is not None
    assert np.flatnonzero(~score.correct).tolist() == [0, 4, 9]
    # Agresti and Min's interval of three lost of ten: 3/12 ± 1.96 * sqrt(4 - 9/12) / 12.
    interval = paired_interval(whole, score, 30.0)
    assert interval is not None
    assert interval[0] == pytest.approx(25 - 196 / 12 * np.sqrt(3.25))


def test_values_by_hand(tmp_path: Path) -> None:
    task = agreement(tmp_path, "float[N]", np.full(40, 2.0, np.float32))
    # Every value is 2.5 in the place of 2: an error of a quarter.
    score = task.score(lambda feeds: {"y": feeds["x"] + 0.5}, "validation")
    assert score.value == pytest.approx(75.0)
    assert score.interval == pytest.approx((75.0, 75.0))
    assert score.correct is None
    assert task.score(lambda feeds: {"y": -3 * feeds["x"]}, "validation").value == 0.0
    assert task.score(lambda feeds: {"y": feeds["x"] * np.nan}, "validation").value == 0.0


def test_an_answer_without_classes_is_another_answer(tmp_path: Path) -> None:
    x = np.tile(np.array([[3.0, 4.0]], np.float32), (16, 1))
    task = agreement(tmp_path, "float[N,2]", x)
    assert task.score(lambda feeds: {"y": feeds["x"][:, :0]}, "validation").value == 0.0


def test_what_is_found_where_the_float_model_finds_nothing_is_no_agreement(tmp_path: Path) -> None:
    assert _same(np.zeros(0, np.int32), np.zeros(3, np.int32)).tolist() == [False] * 3
    assert _same(np.zeros(0, np.int32), np.zeros(0, np.int32)).tolist() == []
    assert _squares(np.zeros(0, np.float32), np.ones(3, np.float32)) == (1.0, 0.0)


def test_answers_that_would_fill_the_memory_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = agreement(tmp_path, "float[N]", np.arange(40, dtype=np.float32))
    asked: list[int] = []
    run = task._reference.run

    def counted(feeds: Feeds) -> Feeds:
        asked.append(1)
        return run(feeds)

    monkeypatch.setattr(task._reference, "run", counted)
    # Four bytes a sample: those of the ten for validation are one byte too many.
    monkeypatch.setattr("onnxdistill.tasks.agreement.KEPT_BYTES", 39)
    scores = [task.score(lambda feeds: {"y": feeds["x"] + 1}, "validation") for _ in range(2)]
    assert scores[0] == scores[1]
    assert len(asked) == 20
    monkeypatch.setattr("onnxdistill.tasks.agreement.KEPT_BYTES", 40)
    assert [task.score(lambda feeds: {"y": feeds["x"] + 1}, "validation") for _ in range(2)] == scores
    assert len(asked) == 30


def test_values_on_demand_where_there_is_an_axis(tmp_path: Path) -> None:
    x = np.tile(np.array([[3.0, 4.0]], np.float32), (16, 1))
    task = agreement(tmp_path, "float[N,2]", x, compared="values")
    # 0.5 of a length of 5, and the larger one is the same.
    score = task.score(lambda feeds: {"y": feeds["x"] + np.array([0.3, -0.4], np.float32)}, "test")
    assert score.value == pytest.approx(90.0)


def test_the_interval_of_values_grows_with_their_spread(tmp_path: Path) -> None:
    x = np.ones(200, np.float32)
    x[::2] = 1.5
    task = agreement(tmp_path, "float[N]", x)
    low, high = task.score(lambda feeds: {"y": np.where(feeds["x"] > 1, feeds["x"], 1.2)}, "test").interval
    assert low < high
    value = task.score(lambda feeds: {"y": np.where(feeds["x"] > 1, feeds["x"], 1.2)}, "test").value
    assert low < value < high
    assert value == pytest.approx(100 * (1 - np.sqrt(0.02 / (0.5 + 1.125))), abs=1.5)


def test_places_of_maps_count_one_by_one(tmp_path: Path) -> None:
    x = np.zeros((16, 2, 1, 2), np.float32)
    x[:, 0] = 1.0
    task = agreement(tmp_path, "float[N,2,1,2]", x)

    def one_of_two_places(feeds: Feeds) -> Feeds:
        turned = feeds["x"].copy()
        turned[:, :, :, 1] = turned[:, ::-1, :, 1]
        return {"y": turned}

    score = task.score(one_of_two_places, "test")
    assert score.value == 50.0
    assert score.correct is None


def test_integers_are_equal_or_not(tmp_path: Path) -> None:
    task = agreement(tmp_path, "int64[N]", np.arange(40))
    score = task.score(lambda feeds: {"y": feeds["x"] // 2 * 2}, "test")
    even = np.mean(split_samples(40, 512, 1, 0)["test"] % 2 == 0)
    assert score.value == pytest.approx(100 * even)
    assert score.correct is not None


def test_several_outputs_count_alike(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "two.onnx",
        "g (float[N,2] x) => (float[N,2] y, float[N] z) { y = Identity (x) z = ReduceMax <keepdims = 0> (x, axes) }",
        {"axes": np.array([1], np.int64)},
    )
    samples = ArraySamples({"x": np.tile(np.array([[1.0, 2.0]], np.float32), (16, 1))})
    task = FloatAgreement(samples, open_session(path), "classes", 512, 0)
    score = task.score(lambda feeds: {"y": feeds["x"], "z": feeds["x"][:, 0]}, "test")
    assert score.value == pytest.approx((100 + 50) / 2)  # 1 in the place of 2
    assert score.correct is None


def test_another_number_of_boxes_agrees_nowhere(tmp_path: Path) -> None:
    task = agreement(tmp_path, "float[N,2]", normal(16, 2))
    assert task.score(lambda feeds: {"y": np.zeros((3, 2), np.float32)}, "test").value == 0.0


@pytest.mark.parametrize("inputs", ["float[N,3] x, float[2,3] h", "float[4,3] x, float[2,3] h"])
def test_a_first_dimension_that_is_not_the_samples_is_refused(tmp_path: Path, inputs: str) -> None:
    (tmp_path / "a.onnx").write_bytes(
        onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["": 20]> a ({inputs}) => (float[N] y) {{ '
            "s = ReduceSum <keepdims = 0> (x) t = ReduceSum <keepdims = 0> (h) u = Add (s, t) "
            "i = Constant <value_ints = [-1]> () y = Reshape (u, i) }"
        ).SerializeToString()
    )
    with pytest.raises(ModelFileError, match=r"h float32\[2, 3\].*the first dimension of every input"):
        fixed_batch(open_session(tmp_path / "a.onnx", SessionSettings()))


def test_a_fixed_batch_is_kept_everywhere(tmp_path: Path) -> None:
    task = agreement(tmp_path, "float[4,3]", normal(50, 3))
    assert task.batch == 4
    shapes: list[int] = []

    def runner(feeds: Feeds) -> Feeds:
        shapes.append(len(feeds["x"]))
        return {"y": feeds["x"]}

    score = task.score(runner, "test")
    assert shapes == [4, 4, 4]
    assert (score.value, score.samples) == (100.0, 12)
    assert score.correct is not None
    assert len(score.correct) == 12
    assert {len(feeds["x"]) for feeds in task.calibration(32)} == {4}


def test_calibration_comes_in_batches_of_calibration_samples_alone(tmp_path: Path) -> None:
    x = np.arange(40, dtype=np.float32)
    task = agreement(tmp_path, "float[N]", x)
    batches = [feeds["x"] for feeds in task.calibration(8)]
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert np.concatenate(batches).tolist() == split_samples(40, 512, 1, 0)["calibration"].tolist()
    assert task.examples(45)["x"].tolist() == np.resize(np.concatenate(batches), 45).tolist()
    assert {name: part["images"] for name, part in task.describe_data().items()} == {
        "calibration": 20, "validation": 10, "test": 10
    }  # fmt: skip


def test_an_output_of_text_cannot_be_compared(tmp_path: Path) -> None:
    path = saved(tmp_path / "text.onnx", "g (float[N] x) => (string[N] y) { y = Cast <to = 8> (x) }")
    with pytest.raises(ModelFileError, match="no output of numbers"):
        FloatAgreement(ArraySamples({"x": normal(16)}), open_session(path), "classes", 512, 0)


@pytest.mark.parametrize(
    ("ports", "body", "part"),
    [
        ("float[N,2] x, float t", "y = Mul (x, t)", "'t' has a dimension for the samples"),
        ("float[2,2] x, float[1,2] t", "y = Mul (x, t)", "these differ"),
    ],
)
def test_inputs_without_a_common_batch(tmp_path: Path, ports: str, body: str, part: str) -> None:
    path = saved(tmp_path / "odd.onnx", f"g ({ports}) => (float[N,2] y) {{ {body} }}")
    with pytest.raises(ModelFileError, match=part):
        FloatAgreement(ArraySamples({"x": normal(16, 2), "t": normal(16, 2)}), open_session(path), "classes", 512, 0)
