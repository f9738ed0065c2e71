"""From an ONNX file alone to a measured int8 one: the only file that knows the order of its steps.

    ONNX file, samples ─► data ─► teacher ─► quantize ─► bench ─► ship

The teacher is the float file as it is, and the student an int8 form of it, or the same file again if there is none that
is both faster and accurate enough. Accuracy is agreement with the float file, see `FloatAgreement`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from onnxdistill.artifacts import SAMPLES, write_files
from onnxdistill.data.samples import ImageSamples, read_samples
from onnxdistill.device.feeds import check_memory
from onnxdistill.device.modelfile import check_model_file
from onnxdistill.device.profiling.counting import count_macs
from onnxdistill.device.session import Session, open_session
from onnxdistill.errors import UsageError
from onnxdistill.gate import FileGate, place_of, verifying_settings
from onnxdistill.journal import Journal
from onnxdistill.judge import Int8Judge
from onnxdistill.progress import Progress
from onnxdistill.quantization.source import Source, take_source
from onnxdistill.recipe import OnnxRecipe, onnx_recipe
from onnxdistill.record import FileRecord
from onnxdistill.report import Report
from onnxdistill.shell import opened
from onnxdistill.tasks.agreement import FloatAgreement, fixed_batch


def quantize_onnx(
    model: Path | str,
    data: Path | str,
    *,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    log_file: Path | str | None = None,
) -> Report:
    """Makes the fastest int8 form of a float ONNX file that is accurate enough, and ships it into a run folder.

    Args:
        model: The float ONNX file.
        data: Samples for its inputs, without labels: an .npz file with an array `[samples, ...]` for every input, or a
            folder of images, or of .npz or .npy files.
        out: The run folder; `runs/NAME` by default, NAME being that of the file. An earlier run there is replaced only
            by one that meets its limits; one that misses them goes to `OUT.missed`.
        overrides: Items `table.key=value`, of the keys of `OnnxRecipe`.
        console: Shows progress and the closing table; None is silent.
        log_file: Gets a line of JSON for everything that happens; see `LoggedProgress`.

    Returns:
        The report, as `report.json` in the run folder holds it.

    Raises:
        UsageError: If the file, the samples, an override or the output folder cannot be used.
        LimitsMissedError: If what was made misses a limit; the message names the measured numbers.
    """
    check_model_file(Path(model))
    recipe = onnx_recipe(Path(model), Path(data), overrides)
    target = Path(out) if out is not None else Path("runs") / recipe.name
    log = None if log_file is None else Path(log_file)
    keys = "quantize.calibration_batch or bench.batch"
    sources = (Path(recipe.onnx), Path(recipe.data.path))
    with opened(recipe.name, sources, target, console, log, memory_keys=keys) as shell:
        with shell.running():
            if not shell.folder.holds(Path(recipe.onnx), "teacher.onnx"):  # which it writes again as it is
                shell.folder.check_reading("--onnx", Path(recipe.onnx))
            shell.folder.check_reading("--data", Path(recipe.data.path))
            report = _Run(recipe, shell.scratch, shell.journal, shell.progress).whole(shell.folder.work)
        shell.deliver(report, "Change [limits], or quantize.max_drop.")
    return report


@dataclass
class _Run:
    """One quantization; `whole` is the order of the steps."""

    recipe: OnnxRecipe
    scratch: Path
    journal: Journal
    progress: Progress

    def whole(self, folder: Path) -> Report:
        """Runs every step and fills the run folder."""
        started = time.monotonic()
        self.place = place_of(self.recipe.bench)
        self.settings = verifying_settings(self.recipe.bench)
        self.progress.begin("data", "reading and splitting")
        session = open_session(Path(self.recipe.onnx), self.settings)
        source = take_source(Path(self.recipe.onnx), self.scratch / "teacher.onnx")
        self._take_batch(session)
        notes = self._take_samples(session, source)
        self.record = FileRecord(self.recipe, self.scoring, self.settings, self.place, self.progress)
        self.record.note(*self.journal.notes, *notes)
        inputs = self._bench_inputs()
        self._teacher(source)
        self._quantize(source, FileGate(self.recipe.bench, self.place, self.recipe.seed, self.journal, inputs))
        timings = self.record.bench(inputs)
        report = self.record.report(timings, time.monotonic() - started)
        samples = self.scoring.examples(self.scoring.batch or SAMPLES)
        write_files(samples, self.record.steps, self.record.targets, report, folder)
        return report

    def _take_batch(self, session: Session) -> None:
        """A model that takes so many samples at once, and no other number, is timed with that number."""
        fixed = fixed_batch(session)
        table = self.recipe.bench
        if fixed is None or table.batch == fixed:
            return
        if "batch" in table.model_fields_set:
            raise UsageError(
                f"{session.label} takes {fixed} samples at once, and bench.batch = {table.batch}.",
                "Leave out bench.batch, or export the model with an open batch.",
            )
        self.recipe = self.recipe.model_copy(update={"bench": table.model_copy(update={"batch": fixed})})

    def _take_samples(self, session: Session, source: Source) -> list[str]:
        """Reads and splits the samples; returns notes for the user."""
        table = self.recipe.data
        samples = read_samples(table, session, source.metadata)
        self.scoring = FloatAgreement(samples, session, self.recipe.agreement, table.calibration, self.recipe.seed)
        parts = self.scoring.describe_data().items()
        self.progress.end(", ".join(f"{part['images']:,} {name}" for name, part in parts))
        if not isinstance(samples, ImageSamples):
            return []
        taken = samples.normalisation
        resolved = table.model_copy(update={"mean": list(taken.mean), "std": list(taken.std)})
        self.recipe = self.recipe.model_copy(update={"data": resolved})
        if not taken.guessed:
            return []
        return [
            "The file does not say how its images are normalised, so that the mean and the standard deviation of "
            "ImageNet were taken; data.mean and data.std say otherwise."
        ]

    def _bench_inputs(self) -> dict[str, Any]:
        batch = self.recipe.bench.batch
        check_memory(f"bench.batch = {batch}", batch * sum(one.nbytes for one in self.scoring.examples(1).values()))
        return self.scoring.examples(batch)

    def _teacher(self, source: Source) -> None:
        self.record.begin("teacher", "counting multiply-adds")
        batch = self.scoring.batch or 1
        macs = count_macs(source.path.read_bytes(), self.scoring.examples(batch))
        self.cost = (source.parameters, None if macs is None else macs // batch)
        self.record.add_file("teacher", source.path, "float32", *self.cost, f"{Path(self.recipe.onnx).name}, as it is")

    def _quantize(self, source: Source, gate: FileGate) -> None:
        table = self.recipe.quantize
        self.record.begin("quantize", "scoring float32")
        judge = Int8Judge(self.recipe, self.scoring, self.settings, gate, source.path, source.path)
        calibration = partial(self.scoring.calibration, table.calibration_batch)
        self.record.quantize(table, source.path, self.scratch, calibration, judge, self.cost)
