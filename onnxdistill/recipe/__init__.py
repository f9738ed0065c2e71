"""The recipe: what `compress` is asked to do, validated before anything runs.

A recipe is a TOML file. A table `[prune]`, `[factorize]`, `[distill]` or `[quantize]` that is left out leaves
out that stage. Unknown keys are refused. Paths are relative to the recipe; paths given as an override
(`--set data.root=...`) are relative to the working directory.
"""

from __future__ import annotations

from onnxdistill.recipe.compression import FactorizeTable, PlanTable, PruneTable, QuantizeTable, Target
from onnxdistill.recipe.data import FOLDER_IMAGE_SIZE, DataTable
from onnxdistill.recipe.deployment import BenchTable, ExportTable, LimitsTable
from onnxdistill.recipe.distillation import (
    DistillTable,
    FeaturesTable,
    FurtherTeacherTable,
    GuidedTable,
    TeacherTrainingTable,
)
from onnxdistill.recipe.loading import load_recipe, onnx_recipe
from onnxdistill.recipe.messages import table_type
from onnxdistill.recipe.onnxalone import OnnxRecipe, SamplesTable
from onnxdistill.recipe.teacher import TeacherTable
from onnxdistill.recipe.training import TrainingTable
from onnxdistill.recipe.whole import Recipe

__all__ = [
    "FOLDER_IMAGE_SIZE",
    "BenchTable",
    "DataTable",
    "DistillTable",
    "ExportTable",
    "FactorizeTable",
    "FeaturesTable",
    "FurtherTeacherTable",
    "GuidedTable",
    "LimitsTable",
    "OnnxRecipe",
    "PlanTable",
    "PruneTable",
    "QuantizeTable",
    "Recipe",
    "SamplesTable",
    "Target",
    "TeacherTable",
    "TeacherTrainingTable",
    "TrainingTable",
    "load_recipe",
    "onnx_recipe",
    "table_type",
]
