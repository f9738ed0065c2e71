"""CIFAR-10 as torchvision stores it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10

from onnxdistill.data.images import IMAGENET_MEAN, IMAGENET_STD, MemoryImages, Outline, Splits
from onnxdistill.data.splitting import split_training
from onnxdistill.errors import DataError
from onnxdistill.recipe import DataTable

CIFAR10_OUTLINE = Outline(channels=3, size=32, classes=10)


def load_cifar10(table: DataTable, rng: np.random.Generator) -> Splits:
    """Loads CIFAR-10 (Krizhevsky 2009) from `data.root`, downloading it if `data.download` says so.

    Raises:
        DataError: If it is not there, or cannot be downloaded.
    """
    root = Path(table.root or ".")
    train, test = (_part(root, train=part, download=table.download) for part in (True, False))
    kept, calibration, validation = split_training(_images(train), table.validation, table.calibration, rng)
    return Splits(
        train=kept,
        calibration=calibration,
        validation=validation,
        test=_images(test),
        classes=tuple(train.classes),
        mean=tuple(table.mean or IMAGENET_MEAN),
        std=tuple(table.std or IMAGENET_STD),
        source="CIFAR-10",
    )


def _part(root: Path, train: bool, download: bool) -> CIFAR10:
    try:
        return CIFAR10(root, train=train, download=download)
    except OSError as error:  # no network: urllib's URLError is an OSError
        raise DataError(
            f"CIFAR-10 cannot be downloaded to {root}: {error}.",
            "Check the network and that the folder can be written, or fetch the archive elsewhere.",
        ) from error
    except RuntimeError as error:
        raise DataError(
            f"CIFAR-10 is not in data.root = {root} in torchvision's form: {error}.",
            'Set data.download = true, or data.source = "folder" for an image folder.',
        ) from error


def _images(part: CIFAR10) -> MemoryImages:
    pixels = torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))
    return MemoryImages(pixels, torch.tensor(part.targets, dtype=torch.int64))
