"""The tables of the stages that make the network smaller: `[plan]`, `[prune]`, `[factorize]` and `[quantize]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onnxdistill.recipe.base import Batch, Count, NotNegative, Positive, Share, Table

Target = Literal["x86-vnni", "x86", "arm64", "cuda", "tensorrt"]
"""A kind of machine that runs an ONNX file."""

Criterion = Literal["second_order", "taylor", "l2", "l1", "norm_scale", "geometric_median"]


class PlanTable(Table):
    """`[plan]`: spend a latency budget on widths and blocks, by what each costs on this machine."""

    speedup: Annotated[float, Field(gt=1)] | None = Field(
        None, description="Times faster than the teacher's fp32 ONNX, as deployed; or `latency_ms`."
    )
    latency_ms: Positive | None = Field(None, description="Median latency of the student, as deployed.")
    steps: Annotated[int, Field(ge=1, le=32)] = Field(
        3, description="Cuts on the way; after each, channels are scored anew and the latency is measured."
    )
    epochs: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Of training as `[distill]` says, but for its features, after every cut but the last: what is cut "
        "next is chosen in a network that has recovered.",
    )
    blocks: bool = Field(True, description="Whether whole residual blocks may go.")
    pairs: bool = Field(True, description="Whether layers may become low-rank pairs.")
    repair: bool = Field(
        True, description="Fit what takes fewer channels to the outputs that it had, by least squares."
    )
    multiple_of: Literal[1, 2, 4, 8, 16] = Field(8, description="Kept widths are rounded up to a multiple of this.")
    minimum: Count = Field(8, description="No group gets narrower than this.")
    skip: list[str] = Field([], description="Layers whose channels stay, and blocks, by name; `*` matches anything.")

    @model_validator(mode="after")
    def _one_budget(self) -> PlanTable:
        if (self.speedup is None) == (self.latency_ms is None):
            raise ValueError("plan needs plan.speedup or plan.latency_ms, and not both")
        return self

    def budget_ms(self, teacher_ms: float) -> float:
        """What a call of the student may take, where the teacher's fp32 ONNX takes `teacher_ms`."""
        if self.latency_ms is not None:
            return self.latency_ms
        assert self.speedup is not None  # one of the two is there
        return teacher_ms / self.speedup


class PruneTable(Table):
    """`[prune]`: remove whole channels."""

    blocks: Annotated[int, Field(ge=0)] = Field(0, description="Residual blocks to leave out, the least important.")
    ratio: Share | None = Field(None, description="Share of the channels to remove in every group; or `macs_ratio`.")
    macs_ratio: Share | None = Field(
        None, description="Multiply-adds to keep; channels go wherever these cost the least importance."
    )
    criterion: Criterion = Field(
        "second_order", description="Importance of a channel: the growth of the loss after repair, or a simpler score."
    )
    repair: bool = Field(
        True, description="Fit what takes fewer channels to the outputs that it had, by least squares."
    )
    multiple_of: Count | dict[str, Count] = Field(
        8,
        description="Kept widths are rounded up to a multiple of this; or a table of group names with `*`, and 8 for "
        "the others.",
    )
    minimum: Count = Field(8, description="No group gets narrower than this.")
    skip: list[str] = Field([], description="Layers whose channels stay, and blocks, by name; `*` matches anything.")

    @model_validator(mode="after")
    def _one_ratio(self) -> PruneTable:
        if self.ratio is not None and self.macs_ratio is not None:
            raise ValueError("prune.ratio and prune.macs_ratio exclude each other")
        if self.ratio is None and self.macs_ratio is None and self.blocks == 0:
            raise ValueError("prune needs prune.ratio, prune.macs_ratio or prune.blocks")
        return self


class FactorizeTable(Table):
    """`[factorize]`: replace layers by low-rank pairs."""

    macs_ratio: Share = Field(description="Multiply-adds to keep, of the whole network.")
    scheme: Literal["auto", "spatial", "channel"] = Field(
        "auto", description="Of k x k convolutions; `auto` takes for each the one that costs less."
    )
    repair: bool = Field(
        True, description="Fit what follows to the outputs that it had, by least squares, if that scores better."
    )
    multiple_of: Count = Field(8, description="Ranks are multiples of this.")
    skip: list[str] = Field([], description="Layers to leave alone, by name; `*` matches anything.")


class QuantizeTable(Table):
    """`[quantize]`: static int8 in QDQ form."""

    activations: Literal["auto", "uint8", "int8"] = Field(
        "auto",
        description="`auto` takes uint8 on x86-64, whose kernels take unsigned activations; signed ones are rewritten "
        "and slower. Elsewhere it takes int8.",
    )
    per_channel: bool = Field(True, description="A scale for every output channel of a weight.")
    ranges: Literal["auto", "minmax", "percentile", "entropy", "mse"] = Field(
        "auto",
        description="What the scale of an activation covers: all calibration values, 99.999 % of them, or as many as "
        "the least Kullback-Leibler divergence (Migacz 2017) or the least squared error asks for. `auto` begins with "
        "all values, and tries the others if that costs too much.",
    )
    max_drop: NotNegative = Field(
        0.5,
        description="Points of validation accuracy below float32 that int8 may cost. If it costs more, more and more "
        "is done: other ranges, corrected biases, equalized channels, better rounding, layers in float, training.",
    )
    epochs: Annotated[int, Field(ge=0)] = Field(
        2, description="Of training with int8, if nothing else is enough. 0: none."
    )
    learning_rate: Positive = Field(0.0003, description="Of that training, by AdamW.")
    calibration_batch: Batch = Field(32, description="Images a calibration step.")
    targets: list[Target] = Field(
        [], description="Machines unlike this one to make a file for as well: student-TARGET.onnx."
    )
