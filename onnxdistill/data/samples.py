"""Samples without labels for the inputs of an ONNX file: arrays, or images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from onnxdistill.data.folder import MEMORY_LIMIT_BYTES
from onnxdistill.data.images import IMAGENET_MEAN, IMAGENET_STD, Indices, Mode, open_image
from onnxdistill.data.walking import files_below
from onnxdistill.device.feeds import read_inputs
from onnxdistill.device.session import Array, Port, Session, shape_fits
from onnxdistill.errors import DataError
from onnxdistill.recipe import SamplesTable

ARRAY_EXTENSIONS = (".npz", ".npy")

_IMAGE_DIMENSIONS = 4
_WRITE_NPZ = "Write it with numpy.savez(path, INPUT=array, …), one array for every input."


class Samples(Protocol):
    """Samples of all inputs of a model."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def fetch(self, indices: Indices) -> dict[str, Array]:
        """The samples at `indices`, by input name; `[len(indices), ...]` each, as the model takes them."""
        ...

    def digest(self, indices: Indices) -> str:
        """A fingerprint of the samples at `indices`, to prove which of them a number was measured on."""
        ...


@dataclass(frozen=True)
class ArraySamples:
    """Samples in memory: arrays `[samples, ...]` by input name."""

    arrays: Mapping[str, Array]

    def __len__(self) -> int:
        return min(len(array) for array in self.arrays.values())

    def fetch(self, indices: Indices) -> dict[str, Array]:
        """See `Samples.fetch`."""
        return {name: array[indices] for name, array in self.arrays.items()}

    def digest(self, indices: Indices) -> str:
        """SHA-256 of the arrays, by name."""
        digest = hashlib.sha256()
        for name, array in sorted(self.fetch(indices).items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Normalisation:
    """What becomes of a pixel in 0..1: `(value - mean) / std` per channel.

    Attributes:
        mean: Of every channel.
        std: Of every channel.
        guessed: Whether nobody said so, and that of ImageNet was taken.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    guessed: bool = False


class ImageSamples:
    """Images that are decoded when they are first fetched, resized and normalised for the one input of a model.

    The largest part in the middle that has the input's proportions is resized to the input's size.

    Args:
        paths: Their files.
        port: The input, `[batch, channels, height, width]` of floats.
        normalisation: Of its channels.
    """

    def __init__(self, paths: Sequence[Path], port: Port, normalisation: Normalisation) -> None:
        self.normalisation = normalisation
        self._paths = paths
        self._port = port
        channels, self._height, self._width = (int(size) for size in port.shape[1:])
        self._mode: Mode = "RGB" if channels == len("RGB") else "L"
        self._decoded: dict[int, Array] = {}
        self._room = MEMORY_LIMIT_BYTES // (channels * self._height * self._width)

    def __len__(self) -> int:
        return len(self._paths)

    def fetch(self, indices: Indices) -> dict[str, Array]:
        """See `Samples.fetch`; decodes on a few threads, since the codecs release the interpreter lock."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            pixels = np.stack(list(pool.map(self._pixels, indices.tolist())))
        mean, std = (
            np.asarray(part, np.float32).reshape(-1, 1, 1) for part in (self.normalisation.mean, self.normalisation.std)
        )
        values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return {self._port.name: values.astype(self._port.dtype, copy=False)}

    def digest(self, indices: Indices) -> str:
        """SHA-256 of name, folder and size of every file."""
        digest = hashlib.sha256()
        for path in (self._paths[index] for index in indices):
            digest.update(f"{path.parent.name}/{path.name}:{path.stat().st_size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _pixels(self, index: int) -> Array:
        """`[channels, height, width]`, uint8."""
        known = self._decoded.get(index)
        if known is not None:
            return known
        image = open_image(self._paths[index], self._mode)
        size = (self._width, self._height)
        fitted = np.asarray(ImageOps.fit(image, size, Image.Resampling.BILINEAR))
        pixels = np.ascontiguousarray(np.atleast_3d(fitted).transpose(2, 0, 1))
        if len(self._decoded) < self._room:
            self._decoded[index] = pixels
        return pixels


def read_samples(table: SamplesTable, session: Session, metadata: Mapping[str, str]) -> ArraySamples | ImageSamples:
    """Reads the samples for a model.

    Args:
        table: Where they are: an .npz file with an array for every input, an .npy file for the only input, or a folder
            of such files, or of images.
        session: The opened model.
        metadata: Of its file; `mean` and `std` say how images are normalised, if `table` does not.

    Raises:
        DataError: If there are none, or if they do not fit the model.
    """
    path = Path(table.path)
    if not path.is_dir():
        if path.suffix.lower() not in ARRAY_EXTENSIONS and path.is_file():
            raise DataError(
                f"{path} is neither a folder nor an .npz or .npy file.",
                "Name a folder of images, or write the inputs with numpy.savez.",
            )
        return _array_samples([path], session, table)
    files = [file for file in files_below(path) if file.is_file()]
    arrays = [file for file in files if file.suffix.lower() in ARRAY_EXTENSIONS]
    images = [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
    if arrays and images:
        raise DataError(
            f"{path} holds both arrays, as {arrays[0].name}, and images, as {images[0].name}.",
            "Name a folder of either.",
        )
    if arrays:
        return _array_samples(arrays, session, table)
    if not images:
        raise DataError(
            f"{path} holds no images (looked for {', '.join(IMG_EXTENSIONS)}), and no .npz or .npy files.",
            "Name a folder with samples in it.",
        )
    port = _image_port(path, session)
    return ImageSamples(images, port, _normalisation(table, metadata, int(port.shape[1])))


def _array_samples(paths: Sequence[Path], session: Session, table: SamplesTable) -> ArraySamples:
    if table.mean is not None:
        raise DataError(
            "data.mean and data.std have no effect on arrays, which the model gets as they are.", "Leave them out."
        )
    first, *others = [_checked(path, _arrays(path), session) for path in paths]
    for path, arrays in zip(paths[1:], others, strict=True):
        for name, array in arrays.items():
            if array.shape[1:] != first[name].shape[1:]:
                raise DataError(
                    f"The array {name!r} has samples of {list(array.shape[1:])} in {path}, and of "
                    f"{list(first[name].shape[1:])} in {paths[0]}.",
                    "All samples have to be of one shape.",
                )
    joined = {name: np.concatenate([array, *(one[name] for one in others)]) for name, array in first.items()}
    return ArraySamples(joined if others else first)


def _arrays(path: Path) -> dict[str, Array]:
    if path.suffix.lower() == ".npz" or not path.is_file():
        return read_inputs(path)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is no .npy file of numbers: {error}.", "Write it with numpy.save.") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an .npz file.", "Call it that, or write it with numpy.save.")
    return {path.stem: array}


def _checked(path: Path, given: dict[str, Array], session: Session) -> dict[str, Array]:
    """The arrays for the inputs of a model; others, such as labels, are left out."""
    ports = session.inputs
    takes = f"The model takes {', '.join(map(str, ports))}"
    if len(ports) == len(given) == 1:
        given = {ports[0].name: next(iter(given.values()))}
    if missing := [port.name for port in ports if port.name not in given]:
        raise DataError(f"{path} has no array {missing[0]!r}, only {', '.join(sorted(given))}. {takes}.", _WRITE_NPZ)
    arrays = {port.name: given[port.name] for port in ports}
    for port in ports:
        _check_array(path, arrays[port.name], port, takes)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise DataError(f"{path} has as many samples as: {listed}.", "Give the same number of samples of every input.")
    return arrays


def _check_array(path: Path, array: Array, port: Port, takes: str) -> None:
    if array.dtype != port.dtype:
        wanted = "what numpy has no type for" if port.dtype is None else port.dtype.name
        raise DataError(f"{path}: the array {port.name!r} is {array.dtype.name}. {takes}.", f"Convert it to {wanted}.")
    if array.ndim != len(port.shape) or not shape_fits(array.shape[1:], port.shape[1:]) or 0 in array.shape[1:]:
        raise DataError(
            f"{path}: the array {port.name!r} is {list(array.shape)}. {takes}.",
            "The first dimension is that of the samples, and the others are those of the input.",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            f"{path}: the array {port.name!r} has values that are NaN or infinite.", "Leave out such samples."
        )


def _image_port(path: Path, session: Session) -> Port:
    port = session.inputs[0]
    known = len(port.shape) == _IMAGE_DIMENSIONS and all(isinstance(size, int) for size in port.shape[1:])
    is_image = known and port.shape[1] in (1, len("RGB")) and port.dtype is not None and port.dtype.kind == "f"
    if len(session.inputs) > 1 or not is_image:
        raise DataError(
            f"{path} holds images, and the model takes {', '.join(map(str, session.inputs))}, which is not one input "
            "of floats [batch, channels, height, width] with 1 or 3 channels and a known height and width.",
            "Give arrays instead of images: an .npz file with one array for every input.",
        )
    return port


def _normalisation(table: SamplesTable, metadata: Mapping[str, str], channels: int) -> Normalisation:
    if table.mean is not None and table.std is not None:
        if len(table.mean) != channels:
            raise DataError(
                f"data.mean has {len(table.mean)} channels, but the model takes {channels}.",
                "Give data.mean and data.std one number a channel.",
            )
        return Normalisation(tuple(table.mean), tuple(table.std))
    mean, std = (_numbers(metadata.get(key, ""), channels) for key in ("mean", "std"))
    if mean and std and min(std) > 0:
        return Normalisation(mean, std)
    if channels != len(IMAGENET_MEAN):
        raise DataError(
            "The model does not say how its grey images are normalised.",
            "Add --set 'data.mean=[0.5]' --set 'data.std=[0.5]', with the numbers that it was trained with.",
        )
    return Normalisation(IMAGENET_MEAN, IMAGENET_STD, guessed=True)


def _numbers(text: str, count: int) -> tuple[float, ...]:
    """A JSON list of so many numbers; empty if it is something else."""
    try:
        values = json.loads(text)
    except ValueError:
        return ()
    fits = isinstance(values, list) and len(values) == count and all(isinstance(one, int | float) for one in values)
    return tuple(map(float, values)) if fits else ()
