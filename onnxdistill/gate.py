"""Measured, not believed: whether a change makes the student faster in the form that will be deployed."""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from onnxdistill.device.measuring.compare import compare, describe, measurably_faster
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.session import SessionSettings
from onnxdistill.journal import Journal
from onnxdistill.recipe import Recipe
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import quantize
from onnxdistill.tasks import Task
from onnxdistill.tasks.base import Feeds

__all__ = ["Gate", "describe", "measurably_faster"]

# Ranges do not change how long a kernel takes, so a gate calibrates on few samples.
CALIBRATION_BATCHES = 2


class Gate:
    """Compares two forms of a network, or of a layer, by measuring them in turns with the recipe's settings.

    Args:
        recipe: Says how latency is measured, and whether the student is quantized.
        task: Gives calibration samples.
        scratch: Folder for the files that are measured.
        journal: Remembers what was measured before the run was ended.
    """

    def __init__(self, recipe: Recipe, task: Task, scratch: Path, journal: Journal) -> None:
        self._recipe = recipe
        self._task = task
        self._scratch = scratch
        self._journal = journal
        self._numbers = itertools.count()
        self._deployed: dict[Path, Path] = {}

    def speedup(self, before: Path, after: Path) -> Estimate:
        """How many times faster `after` runs than `before`, as the files are; see `compare`."""
        table = self._recipe.bench
        settings = SessionSettings(threads=table.threads, provider=table.provider)
        digest = hashlib.sha256(f"{settings} {table.batch} {onnxruntime.__version__} {platform.node()}".encode())
        for path in (before, after):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return self._journal.ratio(
            digest.hexdigest(), lambda: compare(before, after, settings, batch=table.batch, seed=self._recipe.seed)
        )

    def deployed_speedup(self, before: Path, after: Path) -> Estimate:
        """The same of two float files, each in the precision that is to be deployed."""
        return self.speedup(self._as_deployed(before), self._as_deployed(after))

    def layer_speedup(self, before: nn.Module, after: nn.Module, input_shape: tuple[int, ...]) -> Estimate:
        """The same of two layers alone, on inputs of shape `[N, *input_shape]`."""
        inputs = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(self._recipe.seed))
        return self.speedup(self._layer_file(before, inputs), self._layer_file(after, inputs))

    def _as_deployed(self, path: Path) -> Path:
        if self._recipe.quantize is None:
            return path
        if path not in self._deployed:
            self._deployed[path] = self._fresh()
            quantize(path, self._deployed[path], self._few_samples(), self._recipe.quantize)
        return self._deployed[path]

    def _few_samples(self) -> Iterator[Feeds]:
        assert self._recipe.quantize is not None
        batches = self._task.calibration_batches(self._recipe.quantize.calibration_batch)
        for batch in itertools.islice(batches, CALIBRATION_BATCHES):
            yield {self._task.input_name: batch.inputs.numpy()}

    def _layer_file(self, layer: nn.Module, inputs: torch.Tensor) -> Path:
        path = self._fresh()
        export(layer, inputs, path, self._recipe.export)
        if self._recipe.quantize is None:
            return path
        quantized = self._fresh()
        quantize(path, quantized, [{"input": inputs.numpy()}], self._recipe.quantize)
        return quantized

    def _fresh(self) -> Path:
        return self._scratch / f"gate-{next(self._numbers)}.onnx"
