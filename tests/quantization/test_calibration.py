"""Which activations are observed, and their histograms against brute force on a real network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from onnxdistill.errors import DataError, ModelFileError
from onnxdistill.networks import build_network
from onnxdistill.quantization import calibration
from onnxdistill.quantization.calibration import collect, find_activations, with_outputs
from onnxdistill.quantization.histogram import HALF, Histogram
from onnxdistill.recipe import ExportTable
from onnxdistill.stages.export import export

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("float") / "net.onnx"
    export(build_network("cifar-resnet20", 10, 0), torch.zeros(3, 3, 32, 32), path, ExportTable())
    return shape_inference.infer_shapes(onnx.load(path))


def images(count: int) -> Array:
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), dtype=np.float32)


def brute_force(model: onnx.ModelProto, name: str, inputs: Array) -> Array:
    """Every value of a tensor, by onnx's own reference."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    del extended.graph.output[:]
    extended.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return ReferenceEvaluator(extended).run(None, {"input": inputs})[0]  # type: ignore[no-any-return]


def test_histograms_are_those_of_brute_force(resnet: onnx.ModelProto) -> None:
    found = find_activations(resnet)
    made = collect(resnet, found.observed, [{"input": images(4)}])
    assert made.keys() == set(found.observed)
    for name in [found.observed[0], found.observed[3], found.observed[-1]]:
        values = brute_force(resnet, name, images(4)) if name != "input" else images(4)
        expected = Histogram(name)
        expected.add(values)
        assert made[name].total == values.size
        assert made[name].width == expected.width
        # Kernels round differently: a value at the edge of a bin may fall into the next one.
        np.testing.assert_allclose(
            np.cumsum(made[name].counts), np.cumsum(expected.counts), atol=2 + values.size * 2e-3
        )
        assert made[name].maximum == pytest.approx(values.max(), abs=made[name].width)


def test_batches_do_not_matter(resnet: onnx.ModelProto) -> None:
    names = find_activations(resnet).observed
    whole = collect(resnet, names, [{"input": images(12)}])
    parts = collect(resnet, names, ({"input": images(12)[k : k + 1]} for k in range(12)))
    for name in names:
        assert whole[name].width == parts[name].width
        moved = np.abs(np.cumsum(whole[name].counts) - np.cumsum(parts[name].counts)).max()
        assert moved <= 1e-3 * whole[name].total


def test_a_small_budget_sees_the_same_in_more_runs(resnet: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    names = find_activations(resnet).observed
    feeds = [{"input": images(4)}]
    largest: list[int] = []
    real = calibration.Session.lend

    def watched(self: calibration.Session, given: calibration.Feeds) -> dict[str, NDArray[np.generic]]:
        outputs = real(self, given)
        largest.append(sum(values.nbytes for values in outputs.values()))
        return outputs

    monkeypatch.setattr(calibration.Session, "lend", watched)
    whole = collect(resnet, names, feeds)
    assert len(largest) == 1  # all four images at once
    counts = []
    for budget in (2 * 10**6, 10**5):  # one image has 1.2 MB
        largest.clear()
        made = collect(resnet, names, feeds, budget)
        counts.append(len(largest))
        assert max(largest) <= budget
        for name in names:
            assert made[name].total == whole[name].total
            assert made[name].width == whole[name].width
    assert counts[0] == 4
    assert counts[1] > 4 * 5


def test_sizes_that_no_shape_tells_are_measured(resnet: onnx.ModelProto) -> None:
    names = [name for name in find_activations(resnet).observed if name != "input"]
    unknown = onnx.ModelProto()
    unknown.CopyFrom(resnet)
    for info in unknown.graph.value_info:
        for dim in info.type.tensor_type.shape.dim[1:]:
            dim.dim_param = f"{info.name} {dim.dim_value}"
    feeds, settings = {"input": images(3)}, calibration.SessionSettings()
    told = calibration._sizes(resnet, names, feeds, settings)
    assert told == calibration._sizes(unknown, names, feeds, settings)
    session = calibration.open_session(with_outputs(resnet, names), settings)
    assert told == {name: values.nbytes for name, values in session.run(feeds).items()}


def test_the_samples_are_read_once(resnet: onnx.ModelProto) -> None:
    def once() -> Iterator[dict[str, Array]]:
        yield {"input": images(2)}
        yield {"input": images(1)}

    batches = once()
    made = collect(resnet, ["input"], batches)
    assert made["input"].total == 3 * 3 * 32 * 32
    with pytest.raises(DataError, match="no calibration sample"):
        collect(resnet, ["input"], batches)


def test_what_is_no_number_inside_of_a_network_is_named(resnet: onnx.ModelProto) -> None:
    names = find_activations(resnet).observed
    broken = onnx.ModelProto()
    broken.CopyFrom(resnet)
    for tensor in broken.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:  # the classifier's
            tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), np.nan, np.float32), tensor.name))
    with pytest.raises(ModelFileError, match="'output' has values that are no number"):
        collect(broken, names, [{"input": images(1)}])


def graph(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
    return shape_inference.infer_shapes(model)


def test_activations_of_a_graph_by_hand() -> None:
    model = graph(
        """(float[n, 4] x, int64[n] ids) => (float[n, 4] soft, float[n, 4] other)
        <float[4, 4] w = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, float six = {6.0}, float zero = {0.0}>
        {
            a = MatMul(x, w)
            b = Relu(a)
            c = Clip(b, zero, six)
            d = MatMul(c, w)
            e = Relu(d)
            f = Add(d, e)
            g = Erf(f)
            other = Sin(g)
            soft = Softmax(f)
            long = Cast<to = 7>(x)
            row = Add(ids, ids)
        }"""
    )
    found = find_activations(model)
    # Not w (constant), row (integers), nor g and other (no quantizable node has them).
    assert list(found.types) == ["x", "a", "b", "c", "d", "e", "f", "soft"]
    assert found.same_as == {"a": "c", "b": "c"}  # d is read twice
    assert found.bounded == {"soft"}
    assert found.observed == ["x", "c", "d", "e", "f"]
    assert find_activations(model, ["Add"]).observed == ["d", "e", "f"]


def test_a_tensor_without_elements_has_an_empty_histogram() -> None:
    model = graph(
        """(float[n, 4] x) => (float[n, 4] y)
        <int64[1] none = {0}, int64[1] first = {0}, float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
        {
            part = Slice(x, first, none, first)
            y = MatMul(part, w)
        }"""
    )
    made = collect(model, ["x", "part", "y"], [{"x": np.ones((2, 4), np.float32)}])
    assert [made[name].total for name in ("x", "part", "y")] == [8, 0, 0]


def test_a_model_with_a_fixed_batch_is_run_as_it_is() -> None:
    model = graph(
        """(float[2, 4] x) => (float[2, 4] y) <float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
        { y = MatMul(x, w) }"""
    )
    made = collect(model, ["x", "y"], [{"x": np.ones((2, 4), np.float32)}] * 3, budget_bytes=1)
    assert made["y"].total == 24
    assert made["y"].counts[HALF + HALF // 2] == made["x"].counts[HALF + HALF // 2] == 24
