"""Reading and splitting images: real files, hand-made folders, and splits that never overlap."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxdistill.data import load_images
from onnxdistill.data.augment import Augmentation, Views
from onnxdistill.data.images import Decoding, FileImages, MemoryImages
from onnxdistill.data.repeats import seen_test_images
from onnxdistill.data.splitting import split_training, stratified_parts
from onnxdistill.errors import DataError
from onnxdistill.recipe import DataTable
from onnxdistill.tasks.classification import Classification


def make_folder(root: Path, splits: dict[str, int], size: int = 8, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    rng = np.random.default_rng(0)
    for split, images in splits.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(images):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def table(root: Path, **changes: object) -> DataTable:
    values = {"source": "folder", "root": str(root), "image_size": 8, "calibration": 2, "validation": 0.25}
    return DataTable.model_validate(values | changes)


@settings(max_examples=50)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_parts_are_disjoint_complete_and_stratified(counts: list[int], share: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    first = round(share * len(labels))
    parts = stratified_parts(labels, [first], np.random.default_rng(seed))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert len(parts[0]) == first
    for label, count in enumerate(counts):
        taken = int((labels[parts[0]] == label).sum())
        assert abs(taken - share * count) < len(counts) + 1
    # The same holds for what comes first of a part.
    half = parts[1][: len(parts[1]) // 2]
    for label, count in enumerate(counts):
        assert abs(int((labels[half] == label).sum()) - count * len(half) / len(labels)) < 2 * (len(counts) + 1)


@pytest.mark.parametrize("splits", [{"train": 20, "test": 3}, {"train": 20, "val": 2, "test": 3}])
def test_batches_of_calibration_images_are_of_all_classes(tmp_path: Path, splits: dict[str, int]) -> None:
    """Files lie in folders of one class, and a batch norm takes its statistics batch by batch."""
    labels = load_images(table(make_folder(tmp_path, splits), calibration=12), seed=0).calibration.labels
    assert all(sorted(pair) == [0, 1] for pair in labels.reshape(-1, 2).tolist())


def test_digits_splits_share_no_image_and_test_does_not_depend_on_the_seed() -> None:
    digits = DataTable.model_validate({"source": "digits", "validation": 0.2, "calibration": 64})
    one, two = load_images(digits, seed=0), load_images(digits, seed=1)
    assert [len(s) for s in (one.train, one.calibration, one.validation, one.test)] == [1014, 64, 269, 450]
    assert one.test.digest() == two.test.digest()
    assert one.validation.digest() != two.validation.digest()
    assert load_images(digits, seed=0).describe() == one.describe()


def test_no_index_is_drawn_twice() -> None:
    images = MemoryImages(torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1), torch.arange(40) % 4)
    parts = split_training(images, 0.25, 6, np.random.default_rng(3))
    values = [part.fetch(np.arange(len(part))).flatten().tolist() for part in parts]
    assert [len(v) for v in values] == [24, 6, 10]
    assert sorted(value for part in values for value in part) == list(range(40))


def test_too_few_images_for_the_splits() -> None:
    images = MemoryImages(torch.zeros(10, 1, 1, 1, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
    with pytest.raises(DataError, match="10 training images do not suffice for 5 validation"):
        split_training(images, 0.5, 6, np.random.default_rng(0))
    with pytest.raises(DataError, match="training 2"):
        split_training(images, 0.5, 4, np.random.default_rng(0))
    assert len(split_training(images, 0.5, 3, np.random.default_rng(0))[0]) == 2


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    splits = load_images(table(make_folder(tmp_path, {"train": 8, "test": 3})), seed=0)
    assert splits.classes == ("cat", "dog")
    assert [len(s) for s in (splits.train, splits.calibration, splits.validation, splits.test)] == [
        10,
        2,
        4,
        6,
    ]
    first = np.asarray(Image.open(tmp_path / "test" / "cat" / "0.png"))
    assert np.array_equal(splits.test.fetch(np.array([0]))[0].permute(1, 2, 0).numpy(), first)


def test_folder_with_its_own_validation(tmp_path: Path) -> None:
    splits = load_images(table(make_folder(tmp_path, {"train": 8, "val": 2, "test": 3})), seed=0)
    assert [len(s) for s in (splits.train, splits.calibration, splits.validation, splits.test)] == [
        14,
        2,
        4,
        6,
    ]


def test_large_sets_stay_on_disk_and_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path, {"train": 8, "test": 3})
    in_memory = load_images(table(root), seed=0)
    monkeypatch.setattr("onnxdistill.data.folder.MEMORY_LIMIT_BYTES", 0)
    on_disk = load_images(table(root), seed=0)
    assert isinstance(on_disk.test, FileImages)
    every = np.arange(len(on_disk.train))
    assert torch.equal(on_disk.train.fetch(every), in_memory.train.fetch(every))
    assert torch.equal(on_disk.train.labels, in_memory.train.labels)
    assert len(on_disk.describe()["train"]["sha256"]) == 64  # type: ignore[arg-type]  # a digest is text


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """A file's name matters to nobody; a class is named in the report."""
    root = make_folder(tmp_path, {"train": 8, "test": 3}, size=8)
    classes = sorted((root / "train").iterdir())
    min(classes[0].iterdir()).rename(Path(os.fsdecode(os.fsencode(classes[0]) + b"/caf\xe9.png")))
    on_disk = FileImages(sorted(classes[0].iterdir()), torch.zeros(8, dtype=torch.long), Decoding(8, None))
    assert len(on_disk.digest()) == 64
    classes[0].rename(Path(os.fsdecode(os.fsencode(root / "train") + b"/caf\xe9")))
    with pytest.raises(DataError, match=r"holds the class folder 'caf\\udce9', whose name is not UTF-8"):
        load_images(table(root), seed=0)


def test_resize_then_centre_crop(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"train": 8, "test": 3}, size=20)
    with pytest.raises(
        DataError,
        match=r"20x20 pixels, but the network gets 8x8.* data\.image_size = 20; or else data\.resize .*, 8 at",
    ):
        load_images(table(root), seed=0)
    assert load_images(table(root, resize=10), seed=0).image_size == 8


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda root: shutil.rmtree(root), "is not a folder"),
        (
            lambda root: shutil.rmtree(root / "test"),
            "train/, but train/ and one of val/ and test/ are needed",
        ),
        (lambda root: [shutil.rmtree(p) for p in (root / "train").iterdir()], "holds no class folders"),
        (
            lambda root: [shutil.rmtree(p / "dog") for p in root.iterdir()],
            "holds only the class 'cat'; telling classes apart needs at least two",
        ),
        (lambda root: shutil.rmtree(root / "test" / "dog"), "has no image of the class 'dog'"),
        (
            lambda root: [p.unlink() for p in (root / "train" / "cat").iterdir()],
            "has no image of the class 'cat'",
        ),
        (lambda root: (root / "test" / "emu").mkdir(), "has the class 'emu', which train/ lacks"),
        (lambda root: (root / "train" / "cat" / "0.png").write_text("no"), "cannot be read as an image"),
    ],
)
def test_damaged_folders_are_explained(tmp_path: Path, damage: object, part: str) -> None:
    root = make_folder(tmp_path / "set", {"train": 8, "test": 3})
    damage(root)  # type: ignore[operator]  # a function of the root
    with pytest.raises(DataError) as caught:
        load_images(table(root), seed=0)
    assert part in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_splits_that_share_a_file_are_refused(tmp_path: Path, split: str, whole: bool) -> None:
    root = make_folder(tmp_path, {"train": 8, "val": 2, "test": 3})
    if whole:
        shutil.rmtree(root / split)
        (root / split).symlink_to(root / "train")
    else:
        (root / split / "dog" / "0.png").unlink()
        (root / split / "dog" / "0.png").symlink_to(root / "train" / "cat" / "5.png")
    with pytest.raises(DataError, match=rf"train/cat/\d\.png and .*/{split}/.* are the same file"):
        load_images(table(root), seed=0)


def test_links_to_images_elsewhere_are_fine(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", {"train": 8, "test": 3})
    (root / "test").rename(tmp_path / "kept")
    (root / "test").symlink_to(tmp_path / "kept")
    assert len(load_images(table(root), seed=0).test) == 6
    # Within a class as well, and once each: a link may lead back.
    (root / "train" / "cat" / "more").symlink_to(tmp_path / "kept" / "cat")
    (root / "test").unlink()
    (root / "test").mkdir()
    for name in ("cat", "dog"):
        (root / "test" / name).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "test" / name / "a.png")
    (root / "train" / "cat" / "back").symlink_to(root / "train" / "cat")
    splits = load_images(table(root, calibration=2), seed=0)
    assert len(splits.train) + len(splits.calibration) + len(splits.validation) == 2 * 8 + 3


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_images_of_16_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    pixels = np.array([[0, 257, 300], [32768, 65278, 65535], [1, 2, 128]], dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"grey.{suffix}")
    decoded = Decoding(3, None)(tmp_path / f"grey.{suffix}")
    expected = [[0, 1, 1], [128, 254, 255], [0, 0, 0]]
    assert decoded.tolist() == [expected] * 3


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_whose_range_is_not_known_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.ones((3, 3), dtype=kind)).save(tmp_path / "wide.tif")
    with pytest.raises(DataError, match=r"wide\.tif cannot be read as an image: its pixels are neither 8 nor 16 bits"):
        Decoding(3, None)(tmp_path / "wide.tif")


def test_images_that_break_off_in_the_middle_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / "broken.png"
    Image.fromarray(noise).save(path)
    head, first, second, *rest = path.read_bytes().split(b"IDAT")
    assert rest == []
    path.write_bytes(head + b"IDAT" + first + b"\x00\x01\x02\x03" + second)
    with pytest.raises(DataError, match=r"broken\.png cannot be read as an image: broken PNG file") as caught:
        Decoding(200, None)(path)
    assert isinstance(caught.value.__cause__, SyntaxError)


def test_images_that_are_far_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(DataError, match=r"bomb\.png cannot be read as an image: Image size \(900 pixels\) exceeds"):
        Decoding(30, None)(tmp_path / "bomb.png")


def test_cifar10_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not in data\.root.*data\.download = true"):
        load_images(DataTable.model_validate({"source": "cifar10", "root": str(tmp_path)}), seed=0)


def test_crop_moves_every_image_by_itself_and_pads_with_black() -> None:
    pixels = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).repeat(64, 2, 1, 1)
    cropped = Views(64, Augmentation(crop_pad=1), 0)(pixels, np.arange(64))
    assert cropped.shape == pixels.shape
    centres = cropped[:, 0, 1, 1].tolist()
    assert set(centres) == set(range(1, 10))  # the centre pixel moves by at most one pixel either way
    assert torch.equal(cropped[:, 0], cropped[:, 1])  # channels move together
    moved_right = cropped[[c == 4 for c in centres]]  # its left neighbour came to the centre
    assert torch.equal(moved_right[0, 0], torch.tensor([[0, 1, 2], [0, 4, 5], [0, 7, 8]], dtype=torch.uint8))
    assert Views(64, Augmentation(), 0)(pixels, np.arange(64)) is pixels


def test_flip_mirrors_about_half_of_the_images() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).repeat(400, 1, 1, 1)
    flipped = Views(400, Augmentation(flip=True), 0)(pixels, np.arange(400))
    mirrored = (flipped[:, 0, 0, 0] == 3).sum().item()
    assert 150 < mirrored < 250
    assert flipped.sum(dim=3).unique().tolist() == [6]


def test_random_operations_change_images_and_repeat_themselves() -> None:
    pixels = torch.randint(256, (32, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    changed, again = (Views(32, Augmentation(rand_augment=9), 1)(pixels, np.arange(32)) for _ in range(2))
    assert torch.equal(changed, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert changed.dtype == torch.uint8
    differing = (changed != pixels).flatten(1).any(1).sum().item()
    assert differing > 16  # some operations, such as the identity, change nothing
    kinds = torch.stack([Views(32, Augmentation(rand_augment=9), 1)(pixels[:1].expand(32, -1, -1, -1), np.arange(32))])
    assert len({tuple(image.flatten().tolist()) for image in kinds[0]}) > 16  # each image has operations of its own


def test_test_images_that_are_learned_too_are_counted(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"train": 8, "test": 4})
    assert seen_test_images(load_images(table(root), 0)) == 0
    # Of other files, names and even classes.
    shutil.copy(root / "train/cat/3.png", root / "test/cat/copy.png")
    Image.open(root / "train/dog/5.png").save(root / "test/cat/bitmap.bmp")
    shutil.copy(root / "test/dog/0.png", root / "test/dog/again.png")
    splits = load_images(table(root), 0)
    assert seen_test_images(splits) == 2
    (note,) = Classification(splits).data_notes()
    assert note.startswith("data: 2 of the 11 test images are, pixel by pixel, also among those that are learned")
    # Those that stay files are not decoded for it.
    files = FileImages([root / "test/cat/copy.png"], torch.tensor([0]), Decoding(8, None))
    assert seen_test_images(replace(splits, test=files)) is None
    assert Classification(replace(splits, test=files)).data_notes() == []
