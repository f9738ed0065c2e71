"""Measured, not believed: whether a change makes the student faster in the form that will be deployed."""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from onnxdistill.device.bench import bench
from onnxdistill.device.measuring.compare import compare, describe, is_close, measurably_faster
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.runtime import usable_provider
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import FallbackError, ProviderError
from onnxdistill.journal import Journal
from onnxdistill.recipe import BenchTable, Recipe
from onnxdistill.stages.export import export
from onnxdistill.stages.plan import Deployed
from onnxdistill.stages.quantize import quantize
from onnxdistill.tasks import Task
from onnxdistill.tasks.base import Feeds

__all__ = ["FileGate", "Gate", "describe", "measurably_faster", "usable_settings"]

# Ranges do not change how long a kernel takes, so a gate calibrates on few samples.
CALIBRATION_BATCHES = 2
_EXPORTED_BATCH = 3


def usable_settings(table: BenchTable) -> SessionSettings:
    """How files are run; what is not usable here is refused before anything has run.

    Raises:
        UsageError: If there are too many threads, or if the provider is unknown or not usable here.
    """
    settings = SessionSettings(threads=table.threads, provider=table.provider)
    try:
        usable_provider(table.provider)
    except FallbackError as error:  # nothing has run yet
        raise ProviderError(error.what, error.fix) from error
    return settings


class FileGate:
    """Compares ONNX files by measuring them in turns.

    Args:
        table: Says how latency is measured.
        seed: Of the order of the calls.
        journal: Remembers what was measured before the run was ended.
        inputs: Arrays by input name, of which the first items make a batch; random ones if left out.
    """

    def __init__(self, table: BenchTable, seed: int, journal: Journal, inputs: Feeds | None = None) -> None:
        self._table = table
        self._seed = seed
        self._journal = journal
        self._inputs = inputs

    def speedup(self, before: Path, after: Path, enough: Callable[[Estimate], bool] | None = None) -> Estimate:
        """How many times faster `after` runs than `before`, as the files are; see `compare`."""
        table, settings = self._table, self._settings
        shapes = {name: array.shape for name, array in (self._inputs or {}).items()}
        asked = "" if enough is None else enough.__name__
        text = f"{settings} {table.batch} {shapes} {onnxruntime.__version__} {platform.node()} {asked}"
        digest = hashlib.sha256(text.encode())
        for path in (before, after):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return self._journal.ratio(
            digest.hexdigest(),
            lambda: compare(
                before, after, settings, batch=table.batch, seed=self._seed, inputs=self._inputs, enough=enough
            ),
        )

    def latency_ms(self, path: Path) -> float:
        """The median time of a call, of the file alone."""
        table = self._table

        def measure() -> float:
            timed = bench(
                {"model": path},
                threads=table.threads,
                batch=table.batch,
                provider=table.provider,
                seconds=table.seconds,
                inputs=self._inputs,
                seed=self._seed,
            )
            return timed.cases[0].latency_ms.median.value

        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        key = f"latency {self._settings} {table.batch} {onnxruntime.__version__} {platform.node()} {digest}"
        return float(self._journal.decision(key, measure))

    @property
    def _settings(self) -> SessionSettings:
        return SessionSettings(threads=self._table.threads, provider=self._table.provider)


class Gate(FileGate):
    """Compares two forms of a network, or of a layer, by measuring them in turns with the recipe's settings.

    Args:
        recipe: Says how latency is measured, and whether the student is quantized.
        task: Gives calibration samples.
        scratch: Folder for the files that are measured.
        journal: Remembers what was measured before the run was ended.
    """

    def __init__(self, recipe: Recipe, task: Task, scratch: Path, journal: Journal) -> None:
        super().__init__(recipe.bench, recipe.seed, journal)
        self._recipe = recipe
        self._task = task
        self._scratch = scratch
        self._numbers = itertools.count()
        self._deployed: dict[Path, Path] = {}

    def deployed_speedup(self, before: Path, after: Path) -> Estimate:
        """The same of two float files, each in the precision that is to be deployed."""
        return self.speedup(self._as_deployed(before), self._as_deployed(after))

    def deployed(self, network: nn.Module, reference: Path) -> Deployed:
        """A network in the faster of float32 and int8, and its latency: that of a reference over the measured ratio."""
        path = self._fresh()
        export(
            network,
            self._task.example_input(_EXPORTED_BATCH),
            path,
            self._recipe.export,
            input_name=self._task.input_name,
            output_name=self._task.output_name,
        )
        files = dict.fromkeys([path, self._as_deployed(path)])
        ratios = {file: self.speedup(reference, file, is_close).value for file in files}
        file = max(ratios, key=lambda one: ratios[one])
        return Deployed(path, file, self.latency_ms(reference) / ratios[file])

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
