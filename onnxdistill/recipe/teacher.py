"""The table `[teacher]`."""

from __future__ import annotations

from pydantic import Field, model_validator

from onnxdistill.recipe.base import Table
from onnxdistill.recipe.distillation import TeacherTrainingTable
from onnxdistill.recipe.weights import NO_WEIGHTS, OWN_WEIGHTS, check_own_weights


class TeacherTable(Table):
    """`[teacher]`: the network to be compressed."""

    network: str = Field(description="Built-in name, torchvision:NAME, or MODULE:FUNCTION.")
    weights: str = Field(
        NO_WEIGHTS,
        description="File of a state dict; for torchvision the name of a weight enum; `own`, if MODULE:FUNCTION loads "
        "weights itself; or `none`, where only latency can be measured, if nothing is trained.",
    )
    new_head: bool = Field(
        False,
        description="Train new layers in the place of those that have another number of outputs in `weights`.",
    )
    train: TeacherTrainingTable | None = Field(None, description="Train the teacher first, from `weights`.")

    @model_validator(mode="after")
    def _trains_its_head(self) -> TeacherTable:
        check_own_weights("teacher", self.network, self.weights)
        if self.new_head and self.weights == OWN_WEIGHTS:
            raise ValueError("teacher.new_head is for weights of a file; a function that loads them can do so itself")
        if self.new_head and (self.train is None or self.weights == NO_WEIGHTS):
            raise ValueError("teacher.new_head needs teacher.weights, and a [teacher.train] to train the new layers")
        return self
