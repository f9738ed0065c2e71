"""Going back to a good state: the last one of this process after a divergence, that on disk after it was ended."""

from __future__ import annotations

import time

from onnxdistill.errors import TrainingError, memory_error
from onnxdistill.training.checkpoint import Checkpoint, State
from onnxdistill.training.state import TrainingState
from onnxdistill.training.steps import DivergedError
from onnxdistill.training.team import Team

CHECKPOINT_INTERVAL_S = 60.0
"""Within an epoch; there is one after every epoch, too."""

CHECKPOINT_SHARE = 0.05
"""Of the time that may go into those within an epoch: they come less often where writing takes long."""

MAX_HALVINGS = 2


class Recovery:
    """Keeps the states of one training that it can go back to.

    Args:
        state: The training's.
        checkpoint: The file that keeps them beyond this process; None for none.
        team: The processes that train together; the first one writes.

    Attributes:
        notes: What the user shall know of it.
    """

    def __init__(self, state: TrainingState, checkpoint: Checkpoint | None, team: Team) -> None:
        self._state = state
        self._checkpoint = checkpoint
        self._team = team
        self.notes: list[str] = []
        self._good: State = {}
        self._last_saved = 0.0
        self._writing_s = 0.0

    def resume(self) -> bool:
        """Goes on to where a process was that has been ended; False if nothing is left of one."""
        found = self._team.leaders(None if self._checkpoint is None else self._checkpoint.load())
        if found is None:
            if self._checkpoint is not None and self._checkpoint.refused is not None:
                self.notes.append(self._checkpoint.refused)
            return False
        self._good = found["good"]
        self._last_saved = time.monotonic()
        self._state.plan(found["now"]["at"]["epochs"])
        self._state.restore(found["now"])
        at = self._state.at
        if at.epoch <= at.epochs:
            at.notes.append(f"it went on at epoch {at.epoch}, step {at.step + 1}, where a run had been ended")
        else:
            at.notes.append("a run that was ended later had done it")
        return True

    def start(self) -> None:
        """Before the first step: this is the first good state. It costs little to come to, and isn't written."""
        self._good = self._state.saved()
        self._last_saved = time.monotonic()

    def keep(self) -> None:
        """Takes this for the last good state, and writes it down.

        Only the starts of epochs are such states: they do not depend on how fast the machine is.
        """
        self._good = self._state.saved()
        self._write(self._good)

    def keep_in_between(self) -> None:
        """Writes this down within an epoch, if the last time is long ago."""
        # How fast the machine is must decide on nothing else: weights that are not finite show up later.
        interval_s = max(CHECKPOINT_INTERVAL_S, self._writing_s / CHECKPOINT_SHARE)
        if time.monotonic() - self._last_saved > interval_s and self._state.learner.is_finite():
            self._write()

    def go_back(self, error: DivergedError) -> None:
        """Goes back to the last good state, and on with half the learning rate.

        Raises:
            TrainingError: If it has been halved often enough.
        """
        at, rate = self._state.at, self._state.learner.rate
        place = f"{error} at epoch {at.epoch}, step {at.step + 1}, with a learning rate of {rate:.3g}"
        halvings, notes = at.halvings + 1, [*at.notes, f"{place}; it went on with half of it"]
        if halvings > MAX_HALVINGS:
            raise TrainingError(
                f"The training diverged: {place}, though it was halved {MAX_HALVINGS} times.",
                "Lower learning_rate, or set clip_norm = 1.0.",
            ) from error
        self._state.restore(self._good)
        self._state.at.halvings, self._state.at.notes = halvings, notes
        self._state.at.seconds = at.seconds  # what was lost took time, too
        self._state.learner.halve_rate(halvings)
        self.keep()

    def _write(self, now: State | None = None) -> None:
        started = self._last_saved = time.monotonic()
        if self._checkpoint is None:
            return
        try:
            self._checkpoint.save({"now": now or self._state.saved(), "good": self._good})
            self._last_saved = time.monotonic()
            self._writing_s = self._last_saved - started
        except (OSError, MemoryError, RuntimeError) as error:  # a help that is missed only if the run is ended
            if isinstance(error, OSError):
                reason = error.strerror or type(error).__name__
            elif memory_error(error, "") is not None:
                reason = "no memory"
            else:
                raise
            self._checkpoint = None
            self._state.at.notes.append(f"its checkpoint could not be written ({reason}), and it went on without one")
