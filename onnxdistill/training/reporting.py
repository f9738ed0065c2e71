"""Saying how a training goes while it runs: a few times a second, and after every epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from onnxdistill.training.records import OnStatus, TrainingStatus
from onnxdistill.training.state import TrainingState
from onnxdistill.training.teaching import Teaching

STATUS_INTERVAL_S = 0.25
RECENT_STEPS = 50


class Reporter:
    """Measures how fast one training is, and says so.

    Args:
        state: The training's.
        teaching: Its teachers.
        batch_size: Samples of a step, in all processes together.
        on_status: Who is told; None for nobody.
    """

    def __init__(self, state: TrainingState, teaching: Teaching, batch_size: int, on_status: OnStatus | None) -> None:
        self._state = state
        self._teaching = teaching
        self._batch_size = batch_size
        self._on_status = on_status
        self._last_status = 0.0
        self._look_s = 0.0  # of the teachers at an epoch's images, the last time
        self.restart()

    def restart(self) -> None:
        """The speed is measured from here on."""
        self._started, self._steps_before = time.monotonic(), self._state.steps_done
        self._looking_s = 0.0  # in all, which steps do not take

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Around what the teachers look at; they need not have looked at anything."""
        before, seen = time.monotonic(), self._teaching.looks
        yield
        if self._teaching.looks > seen:
            self._look_s = time.monotonic() - before
            self._looking_s += self._look_s

    def report(self, epoch_done: bool = False, looked: float | None = None) -> None:
        """Says where the training stands, if the last time is long enough ago.

        Args:
            epoch_done: An epoch has just been validated, which is always said.
            looked: The share of an epoch's images that the teachers have looked at, while they do.
        """
        now = time.monotonic()
        if self._on_status is None or (now - self._last_status < STATUS_INTERVAL_S and not epoch_done):
            return
        self._last_status = now
        at, steps, done = self._state.at, self._state.steps, self._state.steps_done
        steps_per_s = (done - self._steps_before) / (now - self._started - self._looking_s)
        looks = min(self._teaching.stored_views, at.epochs) - self._teaching.looks
        left_s = (at.epochs * steps - done) / steps_per_s + max(0, looks) * self._look_s if steps_per_s else 0.0
        self._on_status(
            TrainingStatus(
                epoch=at.epoch,
                epochs=at.epochs,
                step=at.step,
                steps=steps,
                loss=self._loss(epoch_done),
                score=at.score,
                learning_rate=self._state.learner.rate,
                samples_per_s=steps_per_s * self._batch_size,
                remaining_s=left_s,
                epoch_done=epoch_done,
                looked=looked,
            )
        )

    def _loss(self, whole_epoch: bool) -> float:
        at = self._state.at
        losses = at.losses if whole_epoch else at.losses[-RECENT_STEPS:]
        before = [record.loss for record in at.history[-1:]]  # while the teachers look, none is new
        return float(np.mean(losses or before or [0.0]))
