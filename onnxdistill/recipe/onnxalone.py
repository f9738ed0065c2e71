"""What is asked of an ONNX file alone: what a recipe asks of a student, without a network and without labels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from onnxdistill.recipe.base import Count, Positive, RunName, Seed, Table
from onnxdistill.recipe.compression import QuantizeTable
from onnxdistill.recipe.data import check_normalisation
from onnxdistill.recipe.deployment import BenchTable, LimitsTable


class SamplesTable(Table):
    """`[data]` of an ONNX file alone: samples of its inputs."""

    path: str = Field(description="File or folder of samples.")
    mean: list[float] | None = Field(
        None, description="Mean per channel, of images in 0..1; as the file says, or else that of ImageNet."
    )
    std: list[Positive] | None = Field(None, description="Standard deviation per channel.")
    calibration: Count = Field(512, description="Samples for calibration, at the most; half of all, if these are less.")

    @model_validator(mode="after")
    def _normalisation(self) -> SamplesTable:
        check_normalisation(self.mean, self.std)
        return self


class OnnxRecipe(Table):
    """What is asked of an ONNX file alone."""

    task: ClassVar[str] = "agreement"

    name: RunName = Field(description="Names the run; the run folder is runs/NAME by default. That of the file.")
    seed: Seed = Field(0, description="Seeds everything random.")
    onnx: str = Field(description="The float ONNX file.")
    agreement: Literal["classes", "values"] = Field(
        "classes",
        description="How outputs are compared with the float model's: by the share of equal classes, where there is an "
        "axis of them (the second one of maps, else the last), or always by their values.",
    )
    data: SamplesTable
    quantize: QuantizeTable
    bench: BenchTable = BenchTable()
    limits: LimitsTable = LimitsTable()

    @model_validator(mode="after")
    def _trains_nothing(self) -> OnnxRecipe:
        if self.quantize.epochs or "learning_rate" in self.quantize.model_fields_set:
            raise ValueError(
                "quantize.epochs and quantize.learning_rate have no effect on an ONNX file; leave them out"
            )
        return self
