"""Random changes of whole batches of images, on their uint8 pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def random_crop(pixels: Tensor, padding: int, rng: np.random.Generator) -> Tensor:
    """Pads with black and cuts the old size out at a random place, another one for every image.

    Args:
        pixels: `[B, C, H, W]`.
        padding: Pixels on every side; 0 returns `pixels`.
        rng: Decides the places.
    """
    if padding == 0:
        return pixels
    count, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding,) * 4)
    tops = torch.from_numpy(rng.integers(0, 2 * padding + 1, count))
    lefts = torch.from_numpy(rng.integers(0, 2 * padding + 1, count))
    rows = tops[:, None] + torch.arange(height)  # [B, H]
    columns = lefts[:, None] + torch.arange(width)  # [B, W]
    image = torch.arange(count)[:, None, None]
    # Indexing with tensors on both sides of `:` puts the channels last.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_flip(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirrors every image `[C, H, W]` of the batch left to right with probability one half."""
    flipped = torch.from_numpy(rng.random(len(pixels)) < 0.5)
    return torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
