"""Labelled images, in memory or decoded from files as they are needed, and their splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from onnxdistill.errors import DataError, is_of_memory

Indices = NDArray[np.int64]
Mode = Literal["RGB", "L"]

# Per-channel statistics of ImageNet; the published ImageNet and CIFAR ResNet checkpoints were trained with them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SIXTEEN_BITS = 2**16 - 1


@dataclass(frozen=True)
class Outline:
    """What the images of a data set look like; `classes` is None where it cannot be known yet."""

    channels: int
    size: int
    classes: int | None


class Images(Protocol):
    """Labelled images of one size."""

    @property
    def labels(self) -> Tensor:
        """Class of every image, `[N]` int64."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def fetch(self, indices: Indices) -> Tensor:
        """Returns the images at `indices` as `[len(indices), C, H, W]`, uint8."""
        ...

    def subset(self, indices: Indices) -> Images:
        """Returns the images at `indices`, in that order."""
        ...

    def digest(self) -> str:
        """A fingerprint of content and order, to prove which images a number was measured on."""
        ...


@dataclass(frozen=True)
class MemoryImages:
    """Images held in memory: `pixels` `[N, C, H, W]` uint8 and `labels` `[N]` int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Indices) -> Tensor:
        """See `Images.fetch`."""
        return self.pixels[torch.from_numpy(indices)]

    def subset(self, indices: Indices) -> MemoryImages:
        """See `Images.subset`."""
        chosen = torch.from_numpy(indices)
        return MemoryImages(self.pixels[chosen], self.labels[chosen])

    def digest(self) -> str:
        """SHA-256 of the pixels and labels."""
        digest = hashlib.sha256(self.pixels.contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Decoding:
    """How a file becomes an array: shorter side to `resize` (if any), centre crop to `size`, RGB."""

    size: int
    resize: int | None

    def __call__(self, path: Path) -> Tensor:
        """Decodes one file to `[3, size, size]` uint8.

        Raises:
            DataError: If the file is not an image, or its size differs and no `resize` is given.
        """
        image = open_image(path, "RGB")
        if self.resize is not None:
            scale = self.resize / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        elif image.size != (self.size, self.size):
            square = image.width == image.height
            raise DataError(
                f"{path} has {image.width}x{image.height} pixels, but the network gets {self.size}x{self.size}.",
                (f"If all images are that large, set data.image_size = {image.width}; or else " if square else "Set ")
                + f"data.resize to the shorter side before the centre crop, {self.size} at least.",
            )
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def open_image(path: Path, mode: Mode) -> Image.Image:
    """Decodes an image file, of 8 or 16 bits, in colour or in grey.

    Raises:
        DataError: If the file is not an image.
    """
    try:
        with Image.open(path) as opened:
            return _eight_bits(opened).convert(mode)
    except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
        if is_of_memory(error):
            raise
        raise DataError(
            f"{path} cannot be read as an image: {str(error).rstrip('.')}.", "Replace or remove the file."
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales grey images of more than 8 bits, which `convert` would clip; others are returned as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    # 16-bit PGM comes as 32-bit integers, and so did 16-bit PNG; those of TIFF have no range that is known.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("its pixels are neither 8 nor 16 bits wide")
    return Image.fromarray(np.round(np.asarray(image) * (255.0 / SIXTEEN_BITS)).astype(np.uint8))


@dataclass(frozen=True)
class FileImages:
    """Images that are decoded from their files whenever they are fetched."""

    paths: Sequence[Path]
    labels: Tensor
    decoding: Decoding

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, indices: Indices) -> Tensor:
        """See `Images.fetch`; decodes on a few threads, since the codecs release the interpreter lock."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            return torch.stack(list(pool.map(self.decoding, [self.paths[i] for i in indices])))

    def subset(self, indices: Indices) -> FileImages:
        """See `Images.subset`."""
        return FileImages([self.paths[i] for i in indices], self.labels[torch.from_numpy(indices)], self.decoding)

    def digest(self) -> str:
        """SHA-256 of class folder, name and size of every file, and the labels."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        for path in self.paths:
            digest.update(f"{path.parent.name}/{path.name}:{path.stat().st_size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """The four splits of a data set. Decisions use `validation`; only verification reads `test`."""

    train: Images
    calibration: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.mean)

    @property
    def image_size(self) -> int:
        """Height and width of an image, in pixels."""
        return int(self.train.fetch(np.zeros(1, dtype=np.int64)).shape[-1])

    def describe(self) -> dict[str, dict[str, int | str]]:
        """Number of images and fingerprint of every split."""
        named = {
            "train": self.train,
            "calibration": self.calibration,
            "validation": self.validation,
            "test": self.test,
        }
        return {name: {"images": len(images), "sha256": images.digest()} for name, images in named.items()}


def in_batches(images: Images, size: int, order: Indices | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields `(pixels [B, C, H, W] uint8, labels [B])` in batches of `size`; the last may be smaller."""
    order = np.arange(len(images), dtype=np.int64) if order is None else order
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield images.fetch(chosen), images.labels[torch.from_numpy(chosen)]
