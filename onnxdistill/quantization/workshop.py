"""Int8 forms of one float model, which is prepared once and calibrated once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import onnx

from onnxdistill.device.host import HostFacts, read_host
from onnxdistill.errors import ModelFileError
from onnxdistill.onnxfile import save_checked
from onnxdistill.quantization.biases import correct_biases
from onnxdistill.quantization.calibration import Feeds, collect, find_activations
from onnxdistill.quantization.equalization import equalize, find_pairs
from onnxdistill.quantization.histogram import Histogram
from onnxdistill.quantization.histogramcache import collected
from onnxdistill.quantization.placement import mixed_ends
from onnxdistill.quantization.preparation import finish, prepare
from onnxdistill.quantization.quantizer import insert_qdq
from onnxdistill.quantization.ranges import Method, Range, find_range
from onnxdistill.quantization.rounding import round_weights
from onnxdistill.quantization.scheme import Scheme

Equalization = Literal["none", "exact", "relu6 as relu"]
Calibration = Callable[[], Iterable[Feeds]]
"""Gives the samples, batch by batch, always the same ones."""


@dataclass(frozen=True)
class Form:
    """How an int8 model is made of a float one.

    Attributes:
        scheme: What becomes an integer, and of which kind.
        ranges: What the scale of an activation covers; see `find_range`.
        equalization: Whether channels are scaled first, so that those of a tensor have ranges alike; see `equalize`.
        rounded: Whether weights are rounded so that the outputs of their layer change least; see `round_weights`.
        corrected: Whether biases make up for the mean error; see `correct_biases`.
        restored: Of the nodes in float those that int8 would hurt, on any machine.
    """

    scheme: Scheme
    ranges: Method = "minmax"
    equalization: Equalization = "none"
    rounded: bool = False
    corrected: bool = False
    restored: frozenset[str] = frozenset()

    def __str__(self) -> str:
        text = f"{self.scheme}, {self.ranges} ranges"
        for done, words in (
            (self.equalization != "none", "equalized"),
            (self.rounded, "rounded by layer"),
            (self.corrected, "biases corrected"),
        ):
            text += f", {words}" if done else ""
        return text


@dataclass(frozen=True, eq=False)
class Int8Model:
    """A form of a float model.

    Attributes:
        form: How it was made.
        model: In QDQ form.
        ranges: Of the activations, by the names of their tensors: what their scales and zero points follow from.
        unseen: Tensors that had no element in any calibration sample, or an infinite one; the nodes around them stay in
            float.
    """

    form: Form
    model: onnx.ModelProto = field(repr=False)
    ranges: Mapping[str, Range] = field(repr=False)
    unseen: tuple[str, ...] = ()


class Workshop:
    """Makes int8 forms of a float model.

    Args:
        source: Its ONNX file.
        calibration: Samples that ranges, roundings and biases are taken from.
        host: The machine that the forms are for; this one if left out.
        remembers: Whether histograms of an earlier run are found again; samples are read twice then.

    Attributes:
        prepared: The float model as it is quantized; see `prepare`.
        calibration: As it was given.
        host: The machine that the forms are for.

    Raises:
        ModelFileError: If ONNX Runtime cannot load the model, or if it is too large.
    """

    def __init__(
        self, source: Path, calibration: Calibration, host: HostFacts | None = None, *, remembers: bool = True
    ) -> None:
        model = onnx.load(source)
        self._metadata = list(model.metadata_props)
        self.calibration = calibration
        self.host = host or read_host()
        self._remembers = remembers
        self.prepared = prepare(model)
        self._floats: dict[Equalization, onnx.ModelProto] = {"none": self.prepared}
        self._histograms: dict[Equalization, dict[str, Histogram]] = {}

    def float_model(self, equalization: Equalization = "none") -> onnx.ModelProto:
        """The float model that a form is made of."""
        if equalization not in self._floats:
            self._floats[equalization] = equalize(self.prepared, relu6_as_relu=equalization == "relu6 as relu")
        return self._floats[equalization]

    def equalizes(self, equalization: Equalization) -> bool:
        """Whether a kind of equalization finds anything to do, that the milder one does not."""
        exact = find_pairs(self.prepared)
        if equalization == "relu6 as relu":
            return len(find_pairs(self.prepared, relu6_as_relu=True)) > len(exact)
        return equalization == "exact" and bool(exact)

    def make(self, form: Form) -> Int8Model:
        """Makes a form.

        Raises:
            DataError: If there is no calibration sample.
            ModelFileError: If an activation is NaN or infinite; the message names it.
        """
        prepared = self.float_model(form.equalization)
        found = find_activations(prepared)
        ranges = self.ranges(form)
        ends = mixed_ends(prepared, ranges, form.scheme.operators)
        quantized = insert_qdq(prepared, ranges, replace(form.scheme, float_nodes=form.scheme.float_nodes | ends))
        if form.rounded:
            quantized = round_weights(quantized, prepared, self.calibration)
        if not form.scheme.symmetric:  # which is for TensorRT, that fuses hard-swish by itself
            quantized = finish(quantized)
        if form.corrected:
            quantized = correct_biases(quantized, prepared, self.calibration)
        unseen = tuple(name for name in found.types if name not in ranges)
        return Int8Model(form, quantized, ranges, unseen)

    def write(self, form: Form, path: Path) -> Int8Model:
        """Makes a form and writes it as a file, with what the float file says of itself."""
        made = self.make(form)
        self.save(made.model, path)
        return made

    def save(self, model: onnx.ModelProto, path: Path) -> None:
        """Writes a model that was made of the float one, with what the float file says of itself."""
        have = {entry.key for entry in model.metadata_props}
        model.metadata_props.extend(entry for entry in self._metadata if entry.key not in have)
        try:
            save_checked(model, path)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelFileError(
                f"The model cannot be quantized into a valid one: {first[:300].rstrip('.')}.",
                "Export it anew, with a newer operator set.",
            ) from error

    @property
    def unbounded(self) -> list[str]:
        """Tensors of which a value was infinite, as far as histograms were asked for; the nodes around are in float."""
        found = {name: one for each in self._histograms.values() for name, one in each.items()}
        return sorted(name for name, histogram in found.items() if histogram.unbounded)

    def ranges(self, form: Form) -> dict[str, Range]:
        """Ranges of the activations of a form, without those that no sample shows."""
        model = self.float_model(form.equalization)
        found = find_activations(model)
        if form.equalization not in self._histograms:
            self._histograms[form.equalization] = (
                collected(model, found.observed, self.calibration)
                if self._remembers
                else collect(model, found.observed, self.calibration())
            )
        ranges = {name: Range(0.0, 1.0) for name in sorted(found.bounded)}
        for name, histogram in self._histograms[form.equalization].items():
            covered = find_range(histogram, form.ranges, symmetric=form.scheme.symmetric)
            if covered is not None:
                # Rounded as the quantizer gets it: scales follow from what is reported.
                ranges[name] = Range(*(float(found.types[name].type(end)) for end in covered))
        return ranges | {name: ranges[target] for name, target in found.same_as.items() if target in ranges}
