"""Measured, not believed: whether a change makes the student faster in the form that will be deployed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from onnxdistill.device.measuring.compare import Until, describe, measurably_faster
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.places import Here, Place
from onnxdistill.device.remote.place import There
from onnxdistill.device.session import SessionSettings
from onnxdistill.journal import Journal
from onnxdistill.recipe import BenchTable, Recipe
from onnxdistill.stages.export import export
from onnxdistill.stages.plan import Deployed
from onnxdistill.stages.quantize import quantize
from onnxdistill.tasks import Task
from onnxdistill.tasks.base import Feeds

__all__ = ["FileGate", "Gate", "describe", "measurably_faster", "place_of", "settings_of", "verifying_settings"]

# Ranges do not change how long a kernel takes, so a gate calibrates on few samples.
CALIBRATION_BATCHES = 2
_EXPORTED_BATCH = 3


def place_of(table: BenchTable) -> Place:
    """The machine that files are timed on; what is not usable there is refused before anything has run.

    Raises:
        UsageError: If it cannot be reached, if there are too many threads, or if the provider is unknown or not usable
            there.
    """
    place = Here() if table.remote is None else There(table.remote)
    place.check(settings_of(table))
    return place


def settings_of(table: BenchTable) -> SessionSettings:
    """How files are timed."""
    return SessionSettings(threads=table.threads, provider=table.provider, elsewhere=table.remote is not None)


def verifying_settings(table: BenchTable) -> SessionSettings:
    """How files are scored, which is done here, whatever machine they are timed on."""
    return settings_of(table) if table.remote is None else SessionSettings()


class FileGate:
    """Compares ONNX files by measuring them in turns.

    Args:
        table: Says how latency is measured.
        place: Where that is done.
        seed: Of the order of the calls.
        journal: Remembers what was measured before the run was ended.
        inputs: Arrays by input name, of which the first items make a batch; random ones if left out.

    Attributes:
        doubts: Reasons not to trust the latencies that were measured; ratios have intervals instead.
    """

    def __init__(
        self, table: BenchTable, place: Place, seed: int, journal: Journal, inputs: Feeds | None = None
    ) -> None:
        self._table = table
        self._place = place
        self._seed = seed
        self._journal = journal
        self._inputs = inputs
        self._shapes = {name: array.shape for name, array in (inputs or {}).items()}
        self.doubts: list[str] = []

    def speedup(self, before: Path, after: Path, until: Until = "clear") -> Estimate:
        """How many times faster `after` runs than `before`, as the files are; see `compare`."""
        table, settings = self._table, settings_of(self._table)
        text = f"{settings} {table.batch} {self._shapes} {self._place.key} {until}"
        digest = hashlib.sha256(text.encode())
        for path in (before, after):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return self._journal.ratio(
            digest.hexdigest(),
            lambda: self._place.compare(
                before, after, settings, batch=table.batch, seed=self._seed, inputs=self._inputs, until=until
            ),
        )

    def latency_ms(self, path: Path) -> float:
        """The median time of a call, of the file alone."""
        table = self._table

        def measure() -> dict[str, Any]:
            timed = self._place.bench(
                {"model": path},
                threads=table.threads,
                batch=table.batch,
                provider=table.provider,
                seconds=table.seconds,
                inputs=self._inputs,
                seed=self._seed,
            )
            return {"ms": timed.cases[0].latency_ms.median.value, "doubts": timed.doubts()}

        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found = self.remembered(f"latency and doubts {table.batch} {self._shapes} {table.seconds} {digest}", measure)
        self.doubts += found["doubts"]
        return float(found["ms"])

    def remembered(self, key: str, decide: Callable[[], Any]) -> Any:
        """What was decided at this place with these settings before the run was ended; see `Journal.decision`."""
        return self._journal.decision(f"{key} {settings_of(self._table)} {self._place.key}", decide)


class Gate(FileGate):
    """Compares two forms of a network, or of a layer, by measuring them in turns with the recipe's settings.

    Args:
        recipe: Says how latency is measured, and whether the student is quantized.
        place: Where that is done.
        task: Gives calibration samples.
        scratch: Folder for the files that are measured.
        journal: Remembers what was measured before the run was ended.
    """

    def __init__(self, recipe: Recipe, place: Place, task: Task, scratch: Path, journal: Journal) -> None:
        super().__init__(recipe.bench, place, recipe.seed, journal)
        self._recipe = recipe
        self._task = task
        self._scratch = scratch
        self._numbers = itertools.count()
        self._deployed: dict[Path, Path] = {}

    def deployed_speedup(self, before: Path, after: Path) -> Estimate:
        """The same of two float files, each in the faster of float32 and int8."""
        return self.speedup(self._faster_form(before), self._faster_form(after))

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
        file = self._faster_form(path)
        if file == path and path in self._deployed:
            self._deployed.pop(path).unlink(missing_ok=True)
        return Deployed(path, file, self.latency_ms(reference) / self.speedup(reference, file, "close").value)

    def layer_speedup(self, before: nn.Module, after: nn.Module, input_shape: tuple[int, ...]) -> Estimate:
        """The same of two layers alone, on inputs of shape `[N, *input_shape]`."""
        inputs = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(self._recipe.seed))
        with TemporaryDirectory(dir=self._scratch) as folder:  # there may be hundreds of layers
            slow = self._layer_file(before, inputs, Path(folder) / "before")
            return self.speedup(slow, self._layer_file(after, inputs, Path(folder) / "after"))

    def _faster_form(self, path: Path) -> Path:
        """A float file, or an int8 one of it if that is faster, as what ships will be."""
        if self._recipe.quantize is None:
            return path
        quantized = self._quantized(path)
        # Which of the two is faster is mostly plain, and then takes a fraction of the time that the latency takes.
        return path if self.speedup(path, quantized).value < 1 else quantized

    def _quantized(self, path: Path) -> Path:
        assert self._recipe.quantize is not None
        if path not in self._deployed:
            self._deployed[path] = self._fresh()
            quantize(path, self._deployed[path], self._few_samples(), self._recipe.quantize, self._place.host)
        return self._deployed[path]

    def _few_samples(self) -> Iterator[Feeds]:
        assert self._recipe.quantize is not None
        batches = self._task.calibration_batches(self._recipe.quantize.calibration_batch)
        for batch in itertools.islice(batches, CALIBRATION_BATCHES):
            yield {self._task.input_name: batch.inputs.numpy()}

    def _layer_file(self, layer: nn.Module, inputs: torch.Tensor, base: Path) -> Path:
        path = base.with_suffix(".onnx")
        export(layer, inputs, path, self._recipe.export)
        if self._recipe.quantize is None:
            return path
        quantized = base.with_suffix(".int8.onnx")
        quantize(path, quantized, [{"input": inputs.numpy()}], self._recipe.quantize, self._place.host)
        return quantized

    def _fresh(self) -> Path:
        return self._scratch / f"gate-{next(self._numbers)}.onnx"
