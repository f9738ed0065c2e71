"""The table `[teacher]`."""

from __future__ import annotations

from pydantic import Field, model_validator

from onnxdistill.recipe.base import Table
from onnxdistill.recipe.distillation import TeacherTrainingTable


class TeacherTable(Table):
    """`[teacher]`: the network to be compressed."""

    network: str = Field(description="Built-in name, torchvision:NAME, or MODULE:FUNCTION.")
    weights: str = Field(
        "none", description="File of a state dict; for torchvision the name of a weight enum; or `none`."
    )
    new_head: bool = Field(
        False,
        description="Train new layers in the place of those that have another number of outputs in `weights`.",
    )
    train: TeacherTrainingTable | None = Field(None, description="Train the teacher first, from `weights`.")

    @model_validator(mode="after")
    def _trains_its_head(self) -> TeacherTable:
        if self.new_head and (self.train is None or self.weights == "none"):
            raise ValueError("teacher.new_head needs teacher.weights, and a [teacher.train] to train the new layers")
        return self
