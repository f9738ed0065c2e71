"""Running a training: the leading process says which, and all of its team take part."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from onnxdistill.errors import NetworkError, OnnxDistillError, UsageError, is_of_memory
from onnxdistill.recipe import TrainingTable
from onnxdistill.tasks.base import Objective, Task
from onnxdistill.training.checkpoint import Checkpoint
from onnxdistill.training.hardware import Hardware
from onnxdistill.training.job import Guidance, Job
from onnxdistill.training.loop import Loop
from onnxdistill.training.memory import memory_kept
from onnxdistill.training.records import OnStatus, TrainingResult
from onnxdistill.training.team import current_team


def train(
    network: nn.Module,
    task: Task,
    table: TrainingTable,
    seed: int,
    objective: Objective,
    guidance: Guidance | None = None,
    on_status: OnStatus | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Trains a copy of `network` and returns it with the weights that score best on validation.

    The starting weights count as epoch 0, so the result is never worse on validation than the start. A loss that is
    not finite takes the training back to its last good state with half the learning rate, twice at most.

    Args:
        network: Not changed.
        task: Gives batches, loss and score.
        table: Epochs, optimizer, schedule, augmentation.
        seed: Seeds the order, the augmentation, and dropout.
        objective: Weights of the loss's parts.
        guidance: The teachers; nobody by default.
        on_status: Called a few times a second, and after every epoch.
        checkpoint: A file to keep the state in. If it holds that of the same training (networks, data, settings),
            this one goes on from there, to the same weights as if it had never been ended; on a GPU, which adds up in
            no fixed order, to similar ones.

    Raises:
        TrainingError: If the loss becomes infinite or NaN a third time.
        UsageError: If there are more processes than samples in a batch.
        RecipeError: If a layer whose features are asked for isn't there.
    """
    job, team = Job(network, table, seed, objective, guidance or Guidance()), current_team()
    if table.batch_size < team.size:
        raise UsageError(
            f"batch_size = {table.batch_size} is that of all {team.size} processes together, and leaves some without "
            "a sample.",
            "Set a larger batch_size, or start fewer processes.",
        )
    kept = None if checkpoint is None else Checkpoint(checkpoint, job.fingerprint(task, team.size))
    if team.size > 1:
        _check_sendable(job)
    team.leaders(job)
    return _run(job, task, on_status, kept)


def follow(task: Task, lacking: NetworkError | None = None) -> None:
    """Takes part in all trainings of the leading process, until it lets its team go.

    Args:
        task: As the leading process has it.
        lacking: Which of its networks cannot be had here.

    Raises:
        NetworkError: That one, if the leading process begins a training.
    """
    while True:
        try:
            job = current_team().leaders(cast("Job | None", None))
        except (ImportError, AttributeError) as error:  # of a class that is not known here
            if lacking is None:
                raise
            raise lacking from error
        if job is None:
            return
        if lacking is not None:
            raise lacking
        with suppress(OnnxDistillError):  # the leading process meets the same, and says so
            _run(job, task, None, None)


@contextmanager
def leading() -> Iterator[None]:
    """Lets those that `follow` this process go at the end of the block; without a team, nothing happens.

    After an error that only this process has met they may be anywhere; then they end when it does.
    """
    try:
        yield
    except OnnxDistillError:
        current_team().leaders(None)
        raise
    current_team().leaders(None)


class _Nowhere(io.RawIOBase):
    """Takes what is written, and keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


def _check_sendable(job: Job) -> None:
    """Makes sure that other processes can get it.

    Raises:
        NetworkError: If one of its networks cannot be pickled.
    """
    for network in (job.network, *job.guidance.teachers):
        try:
            pickle.Pickler(_Nowhere()).dump(network)
        except (AttributeError, TypeError, pickle.PicklingError, RuntimeError) as error:  # the last of parametrizations
            if is_of_memory(error):
                raise
            reason = " ".join(str(error).split()).rstrip(".")
            raise NetworkError(
                f"{type(network).__name__} cannot be sent to the other processes: {reason}.",
                "Define its classes and functions at the top level of their file, without lambdas and "
                "parametrizations; or start one process.",
            ) from error


def _run(job: Job, task: Task, on_status: OnStatus | None, checkpoint: Checkpoint | None) -> TrainingResult:
    team = current_team()
    hardware, failed = Hardware(), None
    try:
        hardware = Hardware.of(job.table)
    except UsageError as error:  # which may be so on one machine of several
        failed = error
    team.agreed(failed)
    hardware = replace(hardware, dtype=team.leaders(hardware.dtype))
    try:
        kept = memory_kept() if hardware.device.type == "cpu" else nullcontext()
        with kept, hardware.forked():
            torch.manual_seed(job.seed + team.rank)  # of dropout
            return Loop(job, task, team, hardware, on_status, checkpoint).run()
    finally:
        hardware.release()
