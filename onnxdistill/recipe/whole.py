"""The whole recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from onnxdistill.recipe.base import RunName, Seed, Table
from onnxdistill.recipe.compression import FactorizeTable, PlanTable, PruneTable, QuantizeTable
from onnxdistill.recipe.data import DataTable
from onnxdistill.recipe.deployment import BenchTable, ExportTable, LimitsTable
from onnxdistill.recipe.distillation import DistillTable, FurtherTeacherTable
from onnxdistill.recipe.teacher import TeacherTable
from onnxdistill.recipe.weights import NO_WEIGHTS


class Recipe(Table):
    """A whole recipe."""

    name: RunName = Field(description="Names the run; the run folder is runs/NAME by default.")
    task: Literal["classification"] = Field("classification", description="Kind of task.")
    seed: Seed = Field(0, description="Seeds everything random.")
    data: DataTable
    teacher: TeacherTable
    plan: PlanTable | None = None
    prune: PruneTable | None = None
    factorize: FactorizeTable | None = None
    distill: DistillTable | None = None
    export: ExportTable = ExportTable()
    quantize: QuantizeTable | None = None
    bench: BenchTable = BenchTable()
    limits: LimitsTable = LimitsTable()

    @model_validator(mode="after")
    def _plans_or_prunes(self) -> Recipe:
        if self.plan is not None and self.prune is not None:
            raise ValueError("plan and prune both remove channels; leave out one of the tables [plan] and [prune]")
        return self

    @model_validator(mode="after")
    def _plans_for_its_limits(self) -> Recipe:
        if self.plan is None:
            return self
        for key, planned, limit, bound, enough in (
            ("speedup", self.plan.speedup, "min_speedup", self.limits.min_speedup, float.__ge__),
            ("latency_ms", self.plan.latency_ms, "max_latency_ms", self.limits.max_latency_ms, float.__le__),
        ):
            if planned is not None and bound is not None and not enough(float(planned), float(bound)):
                raise ValueError(
                    f"plan.{key} = {planned:g} would miss limits.{limit} = {bound:g}; plan for what is asked, or more"
                )
        return self

    @model_validator(mode="after")
    def _trains_with_int8(self) -> Recipe:
        table = self.quantize
        if table is not None and not table.epochs and table.learning_rate != QuantizeTable().learning_rate:
            raise ValueError("quantize.learning_rate has no effect on quantize.epochs = 0; leave it out")
        return self

    @model_validator(mode="after")
    def _can_train_between_cuts(self) -> Recipe:
        if self.plan is None or not self.plan.epochs:
            return self
        if self.distill is None:
            raise ValueError("plan.epochs trains as [distill] says; add that table, or leave out plan.epochs")
        if self.plan.steps == 1:
            raise ValueError("plan.epochs has no effect on plan.steps = 1, after which none follows; leave it out")
        return self

    @property
    def further_teachers(self) -> dict[str, FurtherTeacherTable]:
        """The networks that the teacher or the student learn from beside, by their place in the recipe."""
        trainings = {"teacher.train": self.teacher.train, "distill": self.distill}
        return {
            f"{name}.teachers[{number}]": table
            for name, training in trainings.items()
            if training is not None
            for number, table in enumerate(training.teachers)
        }

    @property
    def network_names(self) -> list[str]:
        """Of all networks that are compressed or learned from, in an order that all processes know them by."""
        return sorted({self.teacher.network, *(table.network for table in self.further_teachers.values())})

    @property
    def latency_only(self) -> bool:
        """True if the teacher has neither weights nor training, so that no accuracy can be measured."""
        return self.teacher.weights == NO_WEIGHTS and self.teacher.train is None
