"""The table `[data]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onnxdistill.recipe.base import Count, Positive, Share, Table

Pixels = Annotated[int, Field(ge=1, le=8192)]

FOLDER_IMAGE_SIZE = 224


class DataTable(Table):
    """`[data]`: where the images are and how they are read and split."""

    source: Literal["digits", "folder", "cifar10"] = Field(description="Kind of data set.")
    root: str | None = Field(None, description="Folder of the data set.")
    download: bool = Field(False, description="Let torchvision download CIFAR-10 into `root`.")
    image_size: Pixels | None = Field(
        None,
        description=f"Height and width that the network gets, in pixels; only for folders, {FOLDER_IMAGE_SIZE} there.",
    )
    resize: Pixels | None = Field(None, description="Shorter side before the centre crop, in pixels, only for folders.")
    mean: list[float] | None = Field(
        None, description="Mean per channel, of images in 0..1; that of ImageNet but for digits."
    )
    std: list[Positive] | None = Field(None, description="Standard deviation per channel.")
    validation: Share = Field(
        0.1,
        description="Share of the training images that decisions are made on; in a folder with `val/` and `test/`, "
        "`val/` is for that.",
    )
    calibration: Count = Field(512, description="Training images set aside for calibration.")

    @model_validator(mode="after")
    def _consistent(self) -> DataTable:
        if self.source != "digits" and self.root is None:
            raise ValueError(f"data.root is needed for data.source = {self.source!r}")
        if self.source == "digits" and self.root is not None:
            raise ValueError("data.root has no effect on data.source = 'digits'; leave it out")
        if self.download and self.source != "cifar10":
            raise ValueError(f"data.download has no effect on data.source = {self.source!r}; leave it out")
        for key in ("image_size", "resize"):
            if self.source != "folder" and getattr(self, key) is not None:
                raise ValueError(f"data.{key} has no effect on data.source = {self.source!r}; leave it out")
        size = self.image_size or FOLDER_IMAGE_SIZE
        if self.resize is not None and self.resize < size:
            raise ValueError(f"data.resize = {self.resize} is less than data.image_size = {size}, which is cut out")
        return self

    @model_validator(mode="after")
    def _normalisation(self) -> DataTable:
        check_normalisation(self.mean, self.std)
        return self


def check_normalisation(mean: list[float] | None, std: list[float] | None) -> None:
    """Makes sure that both are there or neither, of the same channels, and of images in 0..1.

    Raises:
        ValueError: If not.
    """
    if (mean is None) != (std is None):
        raise ValueError("data.mean and data.std go together")
    if mean is not None and std is not None and len(mean) != len(std):
        raise ValueError("data.mean and data.std need the same number of channels")
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and not all(0 <= value <= 1 for value in values):
            raise ValueError(
                f"data.{key} = {values} is not of images in 0..1; if it is of images in 0..255, divide data.mean and "
                "data.std by 255"
            )
