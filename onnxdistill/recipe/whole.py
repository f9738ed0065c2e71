"""The whole recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from onnxdistill.recipe.base import Table
from onnxdistill.recipe.compression import FactorizeTable, PruneTable, QuantizeTable
from onnxdistill.recipe.data import DataTable
from onnxdistill.recipe.deployment import BenchTable, ExportTable, LimitsTable
from onnxdistill.recipe.distillation import DistillTable
from onnxdistill.recipe.teacher import TeacherTable

LONGEST_NAME_BYTES = 200


class Recipe(Table):
    """A whole recipe."""

    name: str = Field(description="Names the run; the run folder is runs/NAME by default.")
    task: Literal["classification"] = Field("classification", description="Kind of task.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seeds everything random.")
    data: DataTable
    teacher: TeacherTable
    prune: PruneTable | None = None
    factorize: FactorizeTable | None = None
    distill: DistillTable | None = None
    export: ExportTable = ExportTable()
    quantize: QuantizeTable | None = None
    bench: BenchTable = BenchTable()
    limits: LimitsTable = LimitsTable()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip() or name in ("", ".", "..") or set(name) & {"/", "\\"}:
            raise ValueError(
                f"name = {name!r}: it names the run folder, so it has letters, but no slashes, no control characters, "
                "and no spaces at its ends"
            )
        if len(name.encode()) > LONGEST_NAME_BYTES:
            raise ValueError(f"name = {name[:20]!r}…: it names the run folder; {LONGEST_NAME_BYTES} bytes are the most")
        return name

    @property
    def latency_only(self) -> bool:
        """True if the teacher has neither weights nor training, so that no accuracy can be measured."""
        return self.teacher.weights == "none" and self.teacher.train is None
