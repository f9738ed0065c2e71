"""What every training shares: the larger part of `[distill]` and of `[teacher.train]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from onnxdistill.recipe.base import Positive, Table

Alpha = Annotated[float, Field(ge=0, le=1000)]
TrainingBatchSize = Annotated[int, Field(ge=2, le=65536)]  # batch norm cannot train on one image

SMALLEST_ALPHA = 0.001
ADAPTIVE_LEARNING_RATE = 0.001
"""Kingma and Ba 2014, "Adam", algorithm 1; SGD's would make them diverge."""


class TrainingTable(Table):
    """What every training shares: the optimizer, its schedule, and the augmentation."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="Passes over the training images.")
    minutes: Positive | None = Field(
        None, description="Fewer epochs, if the first steps show that these take longer; the schedule still ends."
    )
    batch_size: TrainingBatchSize = Field(128, description="Images a step.")
    micro_batch: TrainingBatchSize | None = Field(
        None,
        description="Images at once, where a step's do not fit into memory; gradients are summed up, and batch norms "
        "and the loss `dist` see these alone.",
    )
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="SGD is with Nesterov momentum.")
    learning_rate: Annotated[float, Field(gt=0, le=10_000)] = Field(
        0.05, description="Highest learning rate; 0.001 if it is left out with `adam` or `adamw`."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of SGD.")
    weight_decay: Annotated[float, Field(ge=0, le=10_000)] = Field(
        5e-4, description="Weight decay; not on biases and normalisation."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Each layer or block learns at so many times the rate of the next (Howard and Ruder 2018)."
    )
    schedule: Literal["cosine", "one_cycle", "linear", "step", "constant"] = Field(
        "cosine",
        description="After the warm-up; `step` divides by ten after half and after three quarters; `one_cycle` warms "
        "up by a cosine, too.",
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="Share of the steps that warm up.")
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Validate and keep a moving average of the weights that decays by this a step; 0 for none."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of a label's probability that is spread over all classes."
    )
    clip_norm: Positive | None = Field(None, description="Clip the gradient to this norm.")
    crop_pad: Annotated[int, Field(ge=0, le=512)] = Field(0, description="Random crop after padding by so many pixels.")
    flip: bool = Field(False, description="Random horizontal flip.")
    rand_augment: Annotated[int, Field(ge=0, le=30)] = Field(
        0, description="Magnitude of two random operations on every image (Cubuk et al. 2019); 0 for none, 9 is usual."
    )
    mixup: Alpha = Field(0.0, description="Alpha of mixed pairs of images (Zhang et al. 2017); 0 for none.")
    cutmix: Alpha = Field(
        0.0, description="Alpha of pasted rectangles (Yun et al. 2019); 0 for none. With both, one of the two a batch."
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="What it runs on: the processor, or a GPU.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="bfloat16 autocast where the processor, or the GPU, has it."
    )

    @model_validator(mode="before")
    @classmethod
    def _suits_the_optimizer(cls, values: Any) -> Any:  # not validated yet
        adaptive = isinstance(values, dict) and values.get("optimizer") in ("adam", "adamw")
        return {"learning_rate": ADAPTIVE_LEARNING_RATE, **values} if adaptive else values

    @model_validator(mode="after")
    def _has_sense(self) -> TrainingTable:
        for key in ("mixup", "cutmix"):
            if 0 < getattr(self, key) < SMALLEST_ALPHA:
                raise ValueError(f"{key} = {getattr(self, key)}: {SMALLEST_ALPHA} is the least, and 0 is for none")
        if self.micro_batch is not None and self.micro_batch >= self.batch_size:
            raise ValueError(f"micro_batch = {self.micro_batch} is not less than batch_size = {self.batch_size}")
        return self
