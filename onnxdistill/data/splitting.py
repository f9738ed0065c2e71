"""Stratified splits that never overlap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxdistill.data.images import Images, Indices
from onnxdistill.errors import DataError

# Batch norm cannot train on a single image.
FEWEST_TRAINED = 2


def stratified_parts(labels: NDArray[np.int64], sizes: list[int], rng: np.random.Generator) -> list[Indices]:
    """Draws disjoint parts, every one with nearly the class shares of the whole.

    Images are dealt out in an order that goes round the classes, each class shuffled, in proportion to its size.

    Args:
        labels: Class of every image, `[N]`.
        sizes: Images of every part but the last, which takes the rest.
        rng: Decides the order.

    Returns:
        Indices of every part, `len(sizes) + 1` of them, in the order in which they were dealt: neighbours are of
        different classes, so that batches of a part have the class shares of the whole as well.
    """
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # Where in 0..1 each image of the class comes: evenly spread, with one random offset a class.
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.argsort(position, kind="stable")
    cuts = np.cumsum(sizes)
    return [part.astype(np.int64) for part in np.split(order, cuts)]


def split_training(
    images: Images, validation: float, calibration: int, rng: np.random.Generator
) -> tuple[Images, Images, Images]:
    """Splits training images into train, calibration and validation.

    Calibration images keep the order that deals round the classes: batch norms take their statistics batch by batch,
    and files lie in folders of one class.

    Args:
        images: All training images.
        validation: Share of them for validation.
        calibration: Images for calibration.
        rng: Decides which.

    Raises:
        DataError: If fewer than `FEWEST_TRAINED` would be left to train on.
    """
    held = round(validation * len(images))
    if held + calibration > len(images) - FEWEST_TRAINED or held == 0:
        raise DataError(
            f"{len(images)} training images do not suffice for {held} validation "
            f"(data.validation = {validation}) and {calibration} calibration images (data.calibration).",
            f"Add images, or lower these two; validation needs at least one image and training {FEWEST_TRAINED}.",
        )
    labels = images.labels.numpy()
    held_part, calibration_part, rest = stratified_parts(labels, [held, calibration], rng)
    return images.subset(np.sort(rest)), images.subset(calibration_part), images.subset(np.sort(held_part))
