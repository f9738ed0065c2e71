"""Random changes of training images: one view of every image, drawn from a seed, and applied to whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from onnxdistill.data.images import Indices

RAND_AUGMENT_OPERATIONS = 2


@dataclass(frozen=True)
class Augmentation:
    """What may change in a training image.

    Attributes:
        crop_pad: Crop at a random place after padding by so many pixels.
        flip: Mirror left to right with probability one half.
        rand_augment: Magnitude of two random operations, 0 to 30 (Cubuk et al. 2019, "RandAugment"); 0 for none.
        mixup: Alpha of mixed images and labels (Zhang et al. 2017, "mixup"); 0 for none.
        cutmix: Alpha of pasted rectangles and mixed labels (Yun et al. 2019, "CutMix"); 0 for none. With both, one of
            the two a batch.
    """

    crop_pad: int = 0
    flip: bool = False
    rand_augment: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """True if images depend on the others of their batch."""
        return self.mixup > 0 or self.cutmix > 0


class Views:
    """A view of every image of a data set; that of image `i` depends on the seed and on `i` alone.

    Args:
        count: Number of images.
        augmentation: What may change; mixing is `mixed`'s.
        seed: Decides everything.
    """

    def __init__(self, count: int, augmentation: Augmentation, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._padding = augmentation.crop_pad
        self._places = torch.from_numpy(rng.integers(0, 2 * self._padding + 1, (2, count)))
        self._flipped = torch.from_numpy(rng.random(count) < 0.5) if augmentation.flip else None
        self._operations = None
        if augmentation.rand_augment:
            self._operations = v2.RandAugment(RAND_AUGMENT_OPERATIONS, augmentation.rand_augment)
            self._seeds = rng.integers(0, 2**62, count)

    def __call__(self, pixels: Tensor, samples: Indices) -> Tensor:
        """Changes `pixels` `[B, C, H, W]` uint8, the images at `samples` `[B]` of the data set."""
        chosen = torch.from_numpy(samples)
        if self._operations is not None:
            with torch.random.fork_rng(devices=[]):
                pixels = torch.stack([self._operated(*pair) for pair in zip(pixels, samples, strict=True)])
        if self._padding:
            tops, lefts = self._places[:, chosen]
            pixels = cropped(pixels, self._padding, tops, lefts)
        if self._flipped is not None:
            pixels = torch.where(self._flipped[chosen][:, None, None, None], pixels.flip(3), pixels)
        return pixels

    def _operated(self, image: Tensor, sample: int) -> Tensor:
        torch.default_generator.manual_seed(int(self._seeds[sample]))
        changed: Tensor = self._operations(image)  # type: ignore[misc]  # called only if there are some
        return changed


def cropped(pixels: Tensor, padding: int, tops: Tensor, lefts: Tensor) -> Tensor:
    """Pads with black and cuts the old size out, of every image at a place of its own.

    Args:
        pixels: `[B, C, H, W]`.
        padding: Pixels on every side.
        tops: `[B]` rows of the padded images, 0 to `2 * padding`.
        lefts: `[B]` columns.

    Returns:
        `[B, C, H, W]`, channels last in memory.
    """
    count, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    rows = tops[:, None] + torch.arange(height)  # [B, H]
    columns = lefts[:, None] + torch.arange(width)  # [B, W]
    image = torch.arange(count)[:, None, None]
    # Indexing with tensors on both sides of `:` puts the channels last.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mixed(
    inputs: Tensor, labels: Tensor, classes: int, augmentation: Augmentation, seed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mixes every image and label with those of its neighbour in the batch, by mixup or by cutmix.

    Args:
        inputs: `[B, C, H, W]`, floating point.
        labels: `[B]` int64.
        classes: Number of classes.
        augmentation: Has `mixup` or `cutmix`.
        seed: Decides which, and how much.

    Returns:
        The inputs, and the probabilities `[B, classes]` of the labels.
    """
    kinds = ((v2.MixUp, augmentation.mixup), (v2.CutMix, augmentation.cutmix))
    mixers = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha > 0]
    rng = np.random.default_rng(seed)
    mixer = mixers[rng.integers(len(mixers))]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**62)))
        images, probabilities = mixer(inputs, labels)
    return images, probabilities
