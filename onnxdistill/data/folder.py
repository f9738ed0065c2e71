"""Data sets in folders: `root/{train,val,test}/CLASS/IMAGE`, as torchvision's ImageFolder reads them."""

from __future__ import annotations

from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from onnxdistill.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Decoding,
    FileImages,
    Images,
    Indices,
    MemoryImages,
    Outline,
    Splits,
)
from onnxdistill.data.splitting import FEWEST_TRAINED, split_training, stratified_parts
from onnxdistill.data.walking import files_below
from onnxdistill.errors import DataError
from onnxdistill.recipe import FOLDER_IMAGE_SIZE, DataTable

# Decoded images up to this size are kept in memory: decoding them every epoch costs more than training.
MEMORY_LIMIT_BYTES = 2 * 1024**3


def load_folder(table: DataTable, rng: np.random.Generator) -> Splits:
    """Reads an image folder.

    With `train`, `val` and `test`, each is its split. With `train` and one of `val` and `test`, that one is
    the test split, and validation is taken from the training images (`data.validation`). Calibration images
    are always taken from the training images.

    Raises:
        DataError: If folders, classes or images are missing, an image does not decode, or two splits share one.
    """
    root = Path(table.root or ".")
    if not root.is_dir():
        raise DataError(
            f"data.root = {root} is not a folder.", "Set data.root to the folder that holds train/ and test/."
        )
    present = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    held_out = present.get("test", present.get("val"))
    if "train" not in present or held_out is None:
        raise DataError(
            f"{root} holds {', '.join(f'{name}/' for name in present) or 'neither train/ nor test/'}, "
            "but train/ and one of val/ and test/ are needed.",
            "Arrange the images as SPLIT/CLASS/IMAGE.",
        )
    classes = _classes(present["train"])
    decoding = Decoding(table.image_size or FOLDER_IMAGE_SIZE, table.resize)
    named = {name: _files(folder, classes, decoding) for name, folder in present.items()}
    _check_distinct(named)
    test = _load(named["test"] if "test" in named else named["val"])
    if "val" in named and "test" in named:
        calibration_part, rest = stratified_parts(
            named["train"].labels.numpy(), [_affordable(table.calibration, named["train"])], rng
        )
        pool = _load(named["train"])
        train, calibration = pool.subset(np.sort(rest)), pool.subset(calibration_part)
        validation: Images = _load(named["val"])
    else:
        train, calibration, validation = split_training(_load(named["train"]), table.validation, table.calibration, rng)
    return Splits(
        train=train,
        calibration=calibration,
        validation=validation,
        test=test,
        classes=classes,
        mean=tuple(table.mean or IMAGENET_MEAN),
        std=tuple(table.std or IMAGENET_STD),
        source="image folder",
    )


def folder_outline(table: DataTable) -> Outline:
    """What the images of a folder look like; the number of classes is that of the class folders, if there are some.

    Raises:
        DataError: If there is only one class folder.
    """
    train = Path(table.root or ".") / "train"
    known = train.is_dir() and any(entry.is_dir() for entry in train.iterdir())
    return Outline(3, table.image_size or FOLDER_IMAGE_SIZE, len(_classes(train)) if known else None)


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise DataError(f"{folder} holds no class folders.", "Arrange the images as SPLIT/CLASS/IMAGE.")
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:  # it could not be written into any report
            raise DataError(
                f"{folder} holds the class folder {name!r}, whose name is not UTF-8.", "Rename the folder."
            ) from error
    if len(classes) == 1:
        raise DataError(
            f"{folder} holds only the class {classes[0]!r}; telling classes apart needs at least two.",
            "Arrange the images as SPLIT/CLASS/IMAGE.",
        )
    return classes


def _check_distinct(splits: dict[str, FileImages]) -> None:
    """Refuses a file that is reached twice, by links: what was trained on must not be measured on."""
    resolved = cache(Path.resolve)
    seen: dict[Path, Path] = {}
    for path in chain.from_iterable(images.paths for images in splits.values()):
        # Following links costs the most by far: once a folder, and only for those files that are links themselves.
        real = path.resolve() if path.is_symlink() else resolved(path.parent) / path.name
        first = seen.setdefault(real, path)
        if first is not path:
            raise DataError(
                f"{first} and {path} are the same file, but an image serves one purpose only.",
                "Give every split images of its own; without val/, validation is taken from train/.",
            )


def _files(folder: Path, classes: tuple[str, ...], decoding: Decoding) -> FileImages:
    extra = sorted({entry.name for entry in folder.iterdir() if entry.is_dir()} - set(classes))
    if extra:
        raise DataError(
            f"{folder} has the class {extra[0]!r}, which train/ lacks.",
            "Give every split the same class folders.",
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images_below(folder / name)
        if not found:
            raise DataError(
                f"{folder} has no image of the class {name!r} (looked for {', '.join(IMG_EXTENSIONS)}).",
                "Give every split at least one image of every class.",
            )
        paths.extend(found)
        labels.extend([label] * len(found))
    return FileImages(paths, torch.tensor(labels, dtype=torch.int64), decoding)


def _images_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in files_below(folder) if path.suffix.lower() in IMG_EXTENSIONS]


def _affordable(calibration: int, train: FileImages) -> int:
    if calibration > len(train) - FEWEST_TRAINED:
        raise DataError(
            f"{len(train)} training images do not suffice for {calibration} calibration images.",
            "Lower data.calibration.",
        )
    return calibration


def _load(images: FileImages) -> Images:
    size_bytes = len(images) * 3 * images.decoding.size**2
    if size_bytes > MEMORY_LIMIT_BYTES:
        return images
    every: Indices = np.arange(len(images), dtype=np.int64)
    return MemoryImages(images.fetch(every), images.labels)
