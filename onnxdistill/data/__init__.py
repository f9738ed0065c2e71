"""Real data sets, read and split so that no image serves two purposes."""

from __future__ import annotations

import numpy as np

from onnxdistill.data.cifar import CIFAR10_OUTLINE, load_cifar10
from onnxdistill.data.digits import DIGITS_OUTLINE, load_digits_images
from onnxdistill.data.folder import folder_outline, load_folder
from onnxdistill.data.images import Images, MemoryImages, Outline, Splits
from onnxdistill.recipe import DataTable

__all__ = ["Images", "MemoryImages", "Outline", "Splits", "load_images", "outline"]


def load_images(table: DataTable, seed: int) -> Splits:
    """Reads the data set of a recipe and splits it into train, calibration, validation and test.

    Raises:
        DataError: If the data is missing, empty, or unfit; the message names the folder or the file.
    """
    rng = np.random.default_rng(seed)
    match table.source:
        case "digits":
            return load_digits_images(table, rng)
        case "cifar10":
            return load_cifar10(table, rng)
        case "folder":
            return load_folder(table, rng)


def outline(table: DataTable) -> Outline:
    """What the images of a recipe look like, without reading any.

    Raises:
        DataError: If there are class folders, but too few.
    """
    match table.source:
        case "digits":
            return DIGITS_OUTLINE
        case "cifar10":
            return CIFAR10_OUTLINE
        case "folder":
            return folder_outline(table)
