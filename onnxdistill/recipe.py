"""The recipe: what `compress` is asked to do, validated before anything runs.

A recipe is a TOML file. A table `[prune]`, `[factorize]`, `[distill]` or `[quantize]` that is left out leaves
out that stage. Unknown keys are refused. Paths are relative to the recipe; paths given as an override
(`--set data.root=...`) are relative to the working directory.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from onnxdistill.errors import RecipeError

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Alpha = Annotated[float, Field(ge=0, le=1000)]
Count = Annotated[int, Field(ge=1)]
# Bounds that no machine of today gets near; what lies beyond is a slip of the keyboard, and would end in a crash.
Pixels = Annotated[int, Field(ge=1, le=8192)]
Batch = Annotated[int, Field(ge=1, le=65536)]
TrainingBatchSize = Annotated[int, Field(ge=2, le=65536)]  # batch norm cannot train on one image
ThreadCount = Annotated[int, Field(ge=1, le=1024)]

FOLDER_IMAGE_SIZE = 224
LONGEST_NAME_BYTES = 200
SMALLEST_ALPHA = 0.001


Criterion = Literal["second_order", "taylor", "l2", "l1", "norm_scale", "geometric_median"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataTable(_Table):
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
    validation: Share = Field(0.1, description="Share of the training images that decisions are made on.")
    calibration: Count = Field(512, description="Training images set aside for calibration.")

    @model_validator(mode="after")
    def _consistent(self) -> DataTable:
        if self.source != "digits" and self.root is None:
            raise ValueError(f"data.root is needed for data.source = {self.source!r}")
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
        if (self.mean is None) != (self.std is None):
            raise ValueError("data.mean and data.std go together")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("data.mean and data.std need the same number of channels")
        return self


class TrainingTable(_Table):
    """What every training shares: the optimizer, its schedule, and the augmentation."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="Passes over the training images.")
    minutes: Positive | None = Field(
        None, description="Fewer epochs, if the first steps show that these take longer; the schedule still ends."
    )
    batch_size: TrainingBatchSize = Field(128, description="Images a step.")
    micro_batch: TrainingBatchSize | None = Field(
        None,
        description="Images at once, where a step's do not fit into memory; gradients are summed up, and batch norms "
        "see these alone.",
    )
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="SGD is with Nesterov momentum.")
    learning_rate: Annotated[float, Field(gt=0, le=10_000)] = Field(0.05, description="Highest learning rate.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of SGD.")
    weight_decay: Annotated[float, Field(ge=0, le=10_000)] = Field(
        5e-4, description="Weight decay; not on biases and normalisation."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Each outer layer learns at so many times the rate of the next (Howard and Ruder 2018)."
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
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="bfloat16 autocast where the processor has it."
    )

    @model_validator(mode="after")
    def _has_sense(self) -> TrainingTable:
        for key in ("mixup", "cutmix"):
            if 0 < getattr(self, key) < SMALLEST_ALPHA:
                raise ValueError(f"{key} = {getattr(self, key)}: {SMALLEST_ALPHA} is the least, and 0 is for none")
        if self.micro_batch is not None and self.micro_batch >= self.batch_size:
            raise ValueError(f"micro_batch = {self.micro_batch} is not less than batch_size = {self.batch_size}")
        return self


class TeacherTable(_Table):
    """`[teacher]`: the network to be compressed."""

    network: str = Field(description="Built-in name, torchvision:NAME, or MODULE:FUNCTION.")
    weights: str = Field(
        "none", description="File of a state dict; for torchvision the name of a weight enum; or `none`."
    )
    new_head: bool = Field(
        False,
        description="Train new layers in the place of those that have another number of outputs in `weights`.",
    )
    train: TrainingTable | None = Field(None, description="Train the teacher first, from `weights`.")

    @model_validator(mode="after")
    def _trains_its_head(self) -> TeacherTable:
        if self.new_head and (self.train is None or self.weights == "none"):
            raise ValueError("teacher.new_head needs teacher.weights, and a [teacher.train] to train the new layers")
        return self


class PruneTable(_Table):
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
        8, description="Kept widths are rounded up to a multiple of this; or a table of group names with `*`."
    )
    minimum: Count = Field(8, description="No group gets narrower than this.")
    skip: list[str] = Field([], description="Groups to leave alone, by name; `*` matches anything.")

    @model_validator(mode="after")
    def _one_ratio(self) -> PruneTable:
        if self.ratio is not None and self.macs_ratio is not None:
            raise ValueError("prune.ratio and prune.macs_ratio exclude each other")
        if self.ratio is None and self.macs_ratio is None and self.blocks == 0:
            raise ValueError("prune needs prune.ratio, prune.macs_ratio or prune.blocks")
        return self


class FactorizeTable(_Table):
    """`[factorize]`: replace layers by low-rank pairs."""

    macs_ratio: Share = Field(description="Multiply-adds to keep, of the whole network.")
    scheme: Literal["spatial", "channel"] = Field("spatial", description="Of k x k convolutions.")
    multiple_of: Count = Field(8, description="Ranks are multiples of this.")
    skip: list[str] = Field([], description="Layers to leave alone, by name; `*` matches anything.")


class FeaturesTable(_Table):
    """`[distill.features]`: layers of the student that follow the same layers of the teacher."""

    layers: Annotated[list[str], Field(min_length=1)] = Field(description="Names of layers, such as `layer2`.")
    loss: Literal["hint", "attention"] = Field(
        "attention",
        description="Where a layer is active (Zagoruyko and Komodakis 2017), or all of its values, by a 1x1 adapter "
        "where the student is narrower (Romero et al. 2014).",
    )
    weight: NotNegative = Field(1.0, description="Weight of their differences in the loss.")


class FurtherTeacherTable(_Table):
    """An item of `[[distill.teachers]]`: one more network to learn from."""

    network: str = Field(description="As in `teacher.network`.")
    weights: str = Field(description="As in `teacher.weights`, but not `none`.")

    @model_validator(mode="after")
    def _knows_something(self) -> FurtherTeacherTable:
        if self.weights == "none":
            raise ValueError("distill.teachers: a network without weights has nothing to teach; give it weights")
        return self


class DistillTable(TrainingTable):
    """`[distill]`: fine-tune the student with the teacher's logits."""

    loss: Literal["kd", "dkd", "dist"] = Field(
        "kd",
        description="How the teacher's logits are followed: Hinton et al. 2015, decoupled (Zhao et al. 2022), or by "
        "correlation (Huang et al. 2022).",
    )
    temperature: Annotated[float, Field(ge=0.01, le=10_000)] = Field(2.0, description="Softens both distributions.")
    soft_weight: NotNegative | None = Field(
        None, description="Weight of the teacher's logits; if it is left out, 9 with `kd`, 1 with `dkd`, 2 with `dist`."
    )
    target_weight: NotNegative = Field(1.0, description="Of `dkd`: weight of the right class against the rest.")
    others_weight: NotNegative = Field(8.0, description="Of `dkd`: weight of the other classes among themselves.")

    views: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0,
        description="Random views of every image, which the teacher looks at once; its answers are stored. 0: new "
        "views in every epoch, and the teacher runs in every step.",
    )
    features: FeaturesTable | None = Field(None, description="Layers that follow the teacher's.")
    teachers: list[FurtherTeacherTable] = Field(
        [], description="Tables of further teachers, each with `network` and `weights`; the loss is the mean over all."
    )

    @model_validator(mode="after")
    def _goes_together(self) -> DistillTable:
        mixes = self.mixup > 0 or self.cutmix > 0
        if self.hard_weight == 0 and self.soft_weight == 0 and self.features is None:
            raise ValueError("distill.hard_weight and distill.soft_weight are 0: there is nothing to learn from")
        if self.loss == "dkd" and mixes:
            raise ValueError("distill.loss = 'dkd' needs one right class; leave out distill.mixup and distill.cutmix")
        if self.views and mixes:
            raise ValueError(
                "distill.views stores what teachers say to images that are not mixed; leave out "
                "distill.views, or distill.mixup and distill.cutmix"
            )
        if self.views and self.features is not None:
            raise ValueError("distill.features needs the teacher in every step; leave out distill.views")
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> DistillTable:
        dkd = ("target_weight", "others_weight")
        without = {"kd": dkd, "dkd": (), "dist": ("standardise", *dkd)}
        for key in without[self.loss]:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"distill.{key} has no effect on distill.loss = {self.loss!r}; leave it out")
        return self

    hard_weight: NotNegative = Field(1.0, description="Weight of the labels.")
    standardise: bool = Field(
        True,
        description="Of `kd` and `dkd`: z-score the logits first (Sun et al. 2024); not with two classes, where only a "
        "sign is left.",
    )


class ExportTable(_Table):
    """`[export]`: how the ONNX files are written."""

    opset: Annotated[int, Field(ge=18, le=25)] = Field(20, description="ONNX operator set.")


class QuantizeTable(_Table):
    """`[quantize]`: static int8 in QDQ form."""

    activations: Literal["auto", "uint8", "int8"] = Field(
        "auto",
        description="`auto` takes uint8 on x86-64, whose kernels take unsigned activations; signed ones are rewritten "
        "and slower. Elsewhere it takes int8.",
    )
    per_channel: bool = Field(True, description="A scale for every output channel of a weight.")
    ranges: Literal["minmax", "percentile", "entropy"] = Field("minmax", description="Calibration method.")
    calibration_batch: Batch = Field(32, description="Images a calibration step.")


class BenchTable(_Table):
    """`[bench]`: how latency is measured."""

    threads: ThreadCount = Field(1, description="Intra-op threads.")
    batch: Batch = Field(1, description="Images a call.")
    provider: str = Field("cpu", description="Execution provider.")
    runs: Count = Field(400, description="Timed calls of every model.")


class LimitsTable(_Table):
    """`[limits]`: what the student must meet to ship."""

    max_drop: NotNegative | None = Field(None, description="Points of accuracy below the teacher.")
    min_speedup: Positive | None = Field(None, description="Times faster than the teacher's fp32 ONNX.")


class Recipe(_Table):
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


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path: The TOML file.
        overrides: Items `table.key=value`, the value in TOML or, failing that, a bare string.

    Raises:
        RecipeError: One message with every error of the file.
    """
    tables = _read(path)
    _anchor_paths(tables, path.parent.absolute())
    for item in overrides:
        _override(tables, item)
    _anchor_paths(tables, Path.cwd())  # those of the overrides; absolute ones stay
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        found = [_explain(detail) for detail in error.errors()]
        listed = found if len(found) == 1 else [f"({number}) {text}" for number, text in enumerate(found, 1)]
        raise RecipeError(f"{path} is not a valid recipe: {'; '.join(listed)}.", "Correct it.") from error


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise RecipeError(f"{path} is a folder, not a recipe.", f"Name the file, such as {path / 'recipe.toml'}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"The recipe {path} does not exist.", "Correct the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}.", "It has to be a text file.") from error
    except ValueError as error:  # TOMLDecodeError is one, and so is a number of too many digits
        raise RecipeError(f"The recipe {path} is not valid TOML: {error}.", "Correct that line.") from error


def _anchor_paths(tables: dict[str, Any], folder: Path) -> None:
    data, distill = tables.get("data"), tables.get("distill")
    if isinstance(data, dict) and isinstance(data.get("root"), str):
        data["root"] = _anchored(data["root"], folder)
    further = distill.get("teachers") if isinstance(distill, dict) else None
    for teacher in (tables.get("teacher"), *(further if isinstance(further, list) else ())):
        for key in ("weights", "network"):
            value = teacher.get(key) if isinstance(teacher, dict) else None
            if isinstance(value, str) and _is_path(key, value):
                teacher[key] = _anchored(value, folder)


def _anchored(path: str, folder: Path) -> str:
    try:
        return os.path.normpath(folder / Path(path).expanduser())
    except RuntimeError as error:
        raise RecipeError(f"The path {path} starts with a home folder that isn't known.", "Write it out.") from error


def _is_path(key: str, value: str) -> bool:
    if key == "network":
        return ".py:" in value
    return value != "none" and ("/" in value or "." in value)


def _override(tables: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {item!r} is not of the form table.key=value.", "Write for example distill.epochs=5.")
    *parents, last = key.strip().split(".")
    table = tables
    for parent in parents:
        child = table.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {item!r}: {parent!r} is a value, not a table.", "Name a key of a table.")
        table = child
    if text.strip() == "":
        table.pop(last, None)
        return
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        table[last] = text


def _explain(detail: Any) -> str:  # pydantic's ErrorDetails
    place = ".".join(str(part) for part in detail["loc"]) or "the recipe"
    match detail["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key{_nearest_key(detail['loc'])}"
        case "missing":
            return f"{place}: missing"
        case "value_error":
            return str(detail["ctx"]["error"])
        case _:
            return f"{place} = {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _nearest_key(location: tuple[int | str, ...]) -> str:
    table: type[BaseModel] = Recipe
    for part in location[:-1]:
        if isinstance(part, int):  # the place in a list
            continue
        table = table_type(table.model_fields[str(part)].annotation) or table
    close = difflib.get_close_matches(str(location[-1]), table.model_fields, n=1, cutoff=0.0)
    return f", the nearest valid one is {close[0]!r}; known here are {', '.join(table.model_fields)}"


def table_type(annotation: Any) -> type[BaseModel] | None:  # a typing construct
    """The table that a key of a recipe holds, optional or not, or a list of; None if it holds a value."""
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next((found for arg in get_args(annotation) if (found := table_type(arg))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
