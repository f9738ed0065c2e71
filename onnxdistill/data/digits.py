"""The embedded default: 1,797 real handwritten digits, 8x8 grey, that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from onnxdistill.data.images import MemoryImages, Outline, Splits
from onnxdistill.data.splitting import split_training, stratified_parts
from onnxdistill.recipe import DataTable

TEST_IMAGES = 450
DIGITS_OUTLINE = Outline(channels=1, size=8, classes=10)


def load_digits_images(table: DataTable, rng: np.random.Generator) -> Splits:
    """Loads the UCI handwritten digits (Alpaydin and Kaynak 1998, test part), a quarter of them for testing.

    Which images are test images does not depend on the recipe's seed, so that runs compare.

    Args:
        table: The recipe's `[data]`.
        rng: Decides validation and calibration.
    """
    bundle = load_digits()
    pixels = np.round(bundle.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    labels = bundle.target.astype(np.int64)
    images = MemoryImages(torch.from_numpy(pixels), torch.from_numpy(labels))
    test, rest = (np.sort(part) for part in stratified_parts(labels, [TEST_IMAGES], np.random.default_rng(0)))
    train, calibration, validation = split_training(images.subset(rest), table.validation, table.calibration, rng)
    return Splits(
        train=train,
        calibration=calibration,
        validation=validation,
        test=images.subset(test),
        classes=tuple(str(name) for name in bundle.target_names),
        mean=tuple(table.mean or (0.305,)),
        std=tuple(table.std or (0.376,)),
        source="scikit-learn digits",
    )
