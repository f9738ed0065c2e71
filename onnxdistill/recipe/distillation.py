"""What students learn from beside labels: the table `[distill]`, the tables within it, and `[teacher.train]`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from onnxdistill.recipe.base import NotNegative, Positive, Table
from onnxdistill.recipe.training import TrainingTable
from onnxdistill.recipe.weights import NO_WEIGHTS, check_own_weights


class FeaturesTable(Table):
    """`[distill.features]`: layers of the student that follow the same layers of the teacher."""

    layers: Annotated[list[str], Field(min_length=1)] = Field(description="Names of layers, such as `layer2`.")
    loss: Literal["hint", "attention"] = Field(
        "attention",
        description="Where a layer is active (Zagoruyko and Komodakis 2017), or all of its values, by a 1x1 adapter "
        "where the student is narrower (Romero et al. 2014).",
    )
    weight: Positive = Field(1.0, description="Weight of their differences in the loss.")


class FurtherTeacherTable(Table):
    """An item of `[[distill.teachers]]` or `[[teacher.train.teachers]]`: one more network to learn from."""

    network: str = Field(description="As in `teacher.network`.")
    weights: str = Field(description="As in `teacher.weights`, but not `none`.")

    @model_validator(mode="after")
    def _knows_something(self) -> FurtherTeacherTable:
        check_own_weights("teachers", self.network, self.weights)
        if self.weights == NO_WEIGHTS:
            raise ValueError("teachers: a network without weights has nothing to teach; give it weights")
        return self


class GuidedTable(TrainingTable):
    """A training that may follow the logits of other networks."""

    place: ClassVar[str]
    """The table's name in a recipe."""

    loss: Literal["kd", "dkd", "dist"] = Field(
        "kd",
        description="How the teacher's logits are followed: Hinton et al. 2015, decoupled (Zhao et al. 2022), or by "
        "correlation (Huang et al. 2022).",
    )
    temperature: Annotated[float, Field(ge=0.01, le=10_000)] | None = Field(
        None,
        description="Softens both distributions; if it is left out, 2 for z-scored logits, 4 for others, 1 with "
        "`dist`.",
    )
    soft_weight: NotNegative | None = Field(
        None,
        description="Weight of the teacher's logits; if it is left out, 9 for z-scored ones, 1 for others, 2 with "
        "`dist`.",
    )
    target_weight: NotNegative = Field(1.0, description="Of `dkd`: weight of the right class against the rest.")
    others_weight: NotNegative = Field(8.0, description="Of `dkd`: weight of the other classes among themselves.")
    views: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0,
        description="Random views of every image, which the teacher looks at once; its answers are stored. 0: new "
        "views in every epoch, and the teacher runs in every step.",
    )
    teachers: list[FurtherTeacherTable] = Field(
        [],
        description="Further networks to learn from: tables with `network` and `weights`, as in `[teacher]`, whose "
        "training has these alone. The loss is the mean over all.",
    )
    hard_weight: NotNegative = Field(1.0, description="Weight of the labels.")
    standardise: bool | None = Field(
        None,
        description="Of `kd` and `dkd`: z-score the logits first (Sun et al. 2024); not with two classes, where only a "
        "sign is left. If it is left out, with `kd` only.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> GuidedTable:
        mixes = self.mixup > 0 or self.cutmix > 0
        if self.loss == "dkd" and mixes:
            raise ValueError(
                f"{self.place}.loss = 'dkd' needs one right class; leave out {self.place}.mixup and {self.place}.cutmix"
            )
        if self.views and mixes:
            raise ValueError(
                f"{self.place}.views stores what teachers say to images that are not mixed; leave out "
                f"{self.place}.views, or {self.place}.mixup and {self.place}.cutmix"
            )
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> GuidedTable:
        dkd = ("target_weight", "others_weight")
        without = {"kd": dkd, "dkd": (), "dist": ("standardise", *dkd)}
        for key in without[self.loss]:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{self.place}.{key} has no effect on {self.place}.loss = {self.loss!r}; leave it out")
        if self.soft_weight == 0 and self.hard_weight > 0:  # or else what follows no layers follows logits
            for key in ("teachers", "loss", "temperature", "standardise", *dkd):
                if getattr(self, key) != type(self).model_fields[key].get_default():
                    raise ValueError(
                        f"{self.place}.{key} has no effect with {self.place}.soft_weight = 0; leave it out"
                    )
        if self.optimizer != "sgd" and self.momentum != type(self).model_fields["momentum"].default:
            raise ValueError(
                f"{self.place}.momentum has no effect on {self.place}.optimizer = {self.optimizer!r}; leave it out"
            )
        if self.views > 1 and not (self.crop_pad or self.flip or self.rand_augment):
            raise ValueError(
                f"{self.place}.views = {self.views} has no effect without random changes to the images, since all "
                f"views of an image are the same; add {self.place}.crop_pad, {self.place}.flip or "
                f"{self.place}.rand_augment, or leave it out"
            )
        return self


class DistillTable(GuidedTable):
    """`[distill]`: fine-tune the student with the teacher's logits."""

    place: ClassVar[str] = "distill"

    features: FeaturesTable | None = Field(None, description="Layers that follow the teacher's.")

    @model_validator(mode="after")
    def _has_something_to_learn(self) -> DistillTable:
        if self.hard_weight == 0 and self.soft_weight == 0 and self.features is None:
            raise ValueError("distill.hard_weight and distill.soft_weight are 0: there is nothing to learn from")
        if self.views and self.features is not None:
            raise ValueError("distill.features needs the teacher in every step; leave out distill.views")
        return self

    def without_features(self) -> DistillTable:
        """For a network that may lack the layers; where nothing else was followed, it is the logits."""
        nothing_else = self.hard_weight == 0 and self.soft_weight == 0
        return self.model_copy(update={"features": None, **({"soft_weight": None} if nothing_else else {})})


class TeacherTrainingTable(GuidedTable):
    """`[teacher.train]`: train the teacher on labels, and on the logits of other networks where there are some."""

    place: ClassVar[str] = "teacher.train"

    @model_validator(mode="after")
    def _has_somebody_to_follow(self) -> TeacherTrainingTable:
        if not self.teachers:
            for key, field in GuidedTable.model_fields.items():
                if key not in TrainingTable.model_fields and getattr(self, key) != field.get_default():
                    raise ValueError(
                        f"teacher.train.{key} needs a network to learn from: add [[teacher.train.teachers]]"
                    )
        elif self.hard_weight == 0 and self.soft_weight == 0:
            raise ValueError("teacher.train.hard_weight and .soft_weight are 0: there is nothing to learn from")
        return self
