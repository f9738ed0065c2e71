"""Samples for the inputs of an ONNX file: what fits, and what is said of what does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxdistill.data.samples import ArraySamples, ImageSamples, read_samples
from onnxdistill.device.session import Array, Session, open_session
from onnxdistill.errors import DataError
from onnxdistill.recipe import SamplesTable
from tests.onnxfiles import classifier, normal, two_by_two


@pytest.fixture
def image_model(tmp_path: Path) -> Session:
    return open_session(classifier(tmp_path / "model.onnx"))


def read(path: Path, session: Session, **table: object) -> ArraySamples | ImageSamples:
    return read_samples(SamplesTable.model_validate({"path": str(path), **table}), session, {})


def npz(path: Path, **arrays: Array) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # a name could be an option of savez
    return path


def test_one_array_of_any_name_and_labels_beside_it(tmp_path: Path, image_model: Session) -> None:
    x = normal(9, 3, 8, 8)
    for path in (npz(tmp_path / "a.npz", whatever=x), npz(tmp_path / "b.npz", image=x, labels=np.arange(9))):
        samples = read(path, image_model)
        assert len(samples) == 9
        fetched = samples.fetch(np.array([8, 1]))
        assert list(fetched) == ["image"]
        assert np.array_equal(fetched["image"], x[[8, 1]])
    np.save(tmp_path / "c.npy", x)
    assert np.array_equal(read(tmp_path / "c.npy", image_model).fetch(np.arange(9))["image"], x)


def test_a_folder_of_arrays_is_read_in_order(tmp_path: Path, image_model: Session) -> None:
    x = normal(7, 3, 8, 8)
    (tmp_path / "batches" / "more").mkdir(parents=True)
    np.save(tmp_path / "batches" / "0.npy", x[:3])
    npz(tmp_path / "batches" / "more" / "1.npz", image=x[3:])
    assert np.array_equal(read(tmp_path / "batches", image_model).fetch(np.arange(7))["image"], x)


def test_open_dimensions_have_the_sizes_of_the_arrays(tmp_path: Path) -> None:
    session = open_session(two_by_two(tmp_path / "two.onnx"))
    path = npz(tmp_path / "data.npz", sequence=normal(5, 11, 6), extra=normal(5, 3))
    assert {name: array.shape for name, array in read(path, session).fetch(np.arange(2)).items()} == {
        "sequence": (2, 11, 6),
        "extra": (2, 3),
    }


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"sequence": normal(5, 4, 6)}, "has no array 'extra', only sequence. The model takes sequence float32"),
        ({"sequence": normal(5, 4, 7), "extra": normal(5, 3)}, r"'sequence' is \[5, 4, 7\]. The model takes"),
        ({"sequence": normal(5, 4), "extra": normal(5, 3)}, r"'sequence' is \[5, 4\]"),
        ({"sequence": normal(5, 0, 6), "extra": normal(5, 3)}, r"'sequence' is \[5, 0, 6\]"),
        ({"sequence": normal(5, 4, 6).astype(float), "extra": normal(5, 3)}, "'sequence' is float64"),
        ({"sequence": normal(5, 4, 6), "extra": normal(6, 3)}, "5 of 'sequence', 6 of 'extra'"),
        (
            {"sequence": normal(5, 4, 6) * np.float32("inf"), "extra": normal(5, 3)},
            "'sequence' has values that are NaN",
        ),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Array], part: str) -> None:
    session = open_session(two_by_two(tmp_path / "two.onnx"))
    path = npz(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=part) as caught:
        read(path, session)
    assert str(path) in str(caught.value)


def test_files_of_a_folder_that_do_not_go_together(tmp_path: Path) -> None:
    session = open_session(two_by_two(tmp_path / "two.onnx"))
    (tmp_path / "data").mkdir()
    for name, length in (("a", 4), ("b", 5)):
        npz(tmp_path / "data" / f"{name}.npz", sequence=normal(5, length, 6), extra=normal(5, 3))
    with pytest.raises(DataError, match=r"'sequence' has samples of \[5, 6\] in .*b.npz, and of \[4, 6\] in .*a.npz"):
        read(tmp_path / "data", session)


def pictures(folder: Path, count: int = 3, size: tuple[int, int] = (12, 8)) -> Path:
    """Each of one colour, at different depths."""
    for index in range(count):
        place = folder / ("deep/er" if index % 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * index, 100, 200)).save(place / f"{index}.png")
    return folder


def test_images_are_fitted_and_normalised(tmp_path: Path, image_model: Session) -> None:
    samples = read(pictures(tmp_path / "p"), image_model, mean=[0.5, 0.25, 0.0], std=[0.5, 0.25, 1.0])
    assert len(samples) == 3
    (values,) = samples.fetch(np.array([0, 2])).values()
    assert values.shape == (2, 3, 8, 8)
    assert values.dtype == np.float32
    # Files are in the order of their paths: 0.png, 2.png, deep/er/1.png.
    expected = [(0 / 255 - 0.5) / 0.5, (100 / 255 - 0.25) / 0.25, 200 / 255]
    np.testing.assert_allclose(values[0].reshape(3, -1).T, np.tile(expected, (64, 1)), atol=1e-6)
    assert values[1, 0, 0, 0] == pytest.approx((10 / 255 - 0.5) / 0.5, abs=1e-6)
    assert samples.digest(np.array([0])) != samples.digest(np.array([1]))


def test_the_middle_of_an_image_counts(tmp_path: Path, image_model: Session) -> None:
    (tmp_path / "p").mkdir()
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255
    Image.fromarray(wide).save(tmp_path / "p" / "wide.png")
    samples = read(tmp_path / "p", image_model, mean=[0.0] * 3, std=[1.0] * 3)
    assert np.array_equal(samples.fetch(np.array([0]))["image"], np.ones((1, 3, 8, 8), np.float32))


def test_who_says_how_images_are_normalised(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p")
    session = open_session(classifier(tmp_path / "a.onnx"))
    table = SamplesTable(path=str(folder))
    guessed = read_samples(table, session, {})
    assert isinstance(guessed, ImageSamples)
    assert guessed.normalisation.guessed
    assert guessed.normalisation.mean == (0.485, 0.456, 0.406)
    ours = {"mean": json.dumps([0.1, 0.2, 0.3]), "std": json.dumps([1, 2, 3])}
    told = read_samples(table, session, ours)
    assert isinstance(told, ImageSamples)
    assert (told.normalisation.mean, told.normalisation.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert not told.normalisation.guessed
    for foreign in ("mean value", "[1]", '["a", "b", "c"]', "{}"):
        other = read_samples(table, session, {**ours, "mean": foreign})
        assert isinstance(other, ImageSamples)
        assert other.normalisation.guessed


def test_grey_models_get_grey_images_and_have_to_be_told(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p")
    session = open_session(classifier(tmp_path / "grey.onnx", channels=1))
    with pytest.raises(DataError, match="grey images are normalised"):
        read(folder, session)
    (values,) = read(folder, session, mean=[0.0], std=[1.0]).fetch(np.array([0])).values()
    # ITU-R 601: 0.587 * 100 + 0.114 * 200.
    assert values.shape == (1, 1, 8, 8)
    assert values[0, 0, 0, 0] * 255 == pytest.approx(81.5, abs=1)
    with pytest.raises(DataError, match=r"data\.mean has 3 channels, but the model takes 1"):
        read(folder, session, mean=[0.0] * 3, std=[1.0] * 3)


def test_what_is_no_data(tmp_path: Path, image_model: Session) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        read(tmp_path / "empty", image_model)
    with pytest.raises(DataError, match=r"none cannot be read: No such file"):
        read(tmp_path / "none", image_model)
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"x\.csv is neither a folder nor an \.npz"):
        read(tmp_path / "x.csv", image_model)
    (tmp_path / "x.npy").write_text("1,2\n")
    with pytest.raises(DataError, match=r"x\.npy is no \.npy file of numbers"):
        read(tmp_path / "x.npy", image_model)
    (tmp_path / "x.npz").write_text("1,2\n")
    with pytest.raises(DataError, match=r"x\.npz"):
        read(tmp_path / "x.npz", image_model)
    mixed = pictures(tmp_path / "mixed")
    np.save(mixed / "x.npy", normal(3, 3, 8, 8))
    with pytest.raises(DataError, match=r"both arrays, as x\.npy, and images, as 0\.png"):
        read(mixed, image_model)


def test_a_damaged_image_is_named(tmp_path: Path, image_model: Session) -> None:
    folder = pictures(tmp_path / "p")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"2\.png cannot be read as an image"):
        read(folder, image_model).fetch(np.arange(3))


def test_images_for_a_model_that_takes_none(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p")
    with pytest.raises(DataError, match="which is not one input of floats"):
        read(folder, open_session(two_by_two(tmp_path / "two.onnx")))
    with pytest.raises(DataError, match="which is not one input of floats"):
        read(folder, open_session(classifier(tmp_path / "four.onnx", channels=4)))


def test_arrays_are_not_normalised(tmp_path: Path, image_model: Session) -> None:
    path = npz(tmp_path / "a.npz", image=normal(9, 3, 8, 8))
    with pytest.raises(DataError, match="have no effect on arrays"):
        read(path, image_model, mean=[0.5] * 3, std=[0.5] * 3)
