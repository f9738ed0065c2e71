"""What the teachers say to every training batch: computed anew, or once and stored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from onnxdistill.data.augment import Augmentation
from onnxdistill.errors import OnnxDistillError
from onnxdistill.tasks.base import Task, TrainingBatch
from onnxdistill.training.hardware import Hardware
from onnxdistill.training.layout import channels_last
from onnxdistill.training.smallmaps import small_maps_as_products
from onnxdistill.training.team import current_team

TEACHING_BATCH = 256
STORED_BYTES = 2**31
"""The most that stored outputs may take."""

MOST_SEEDS = 2**62
"""Those of augmentations are below."""

OnShare = Callable[[float], None]


class Teaching:
    """The teachers of one training.

    With `views` > 0, epoch `e` shows the student the same views of the images as epoch `e + views`. The teachers look
    at each of these once, before the first epoch that has it, and what they say is stored; so a step costs no more than
    one without teachers. Shen and Xing 2022, "A Fast Knowledge Distillation Framework", section 3, does so with crops.

    Args:
        teachers: Any number of networks; not changed.
        task: Gives the batches.
        augmentation: That of the training.
        views: Stored views of every image; 0 for new ones in every epoch. Without random changes, one is enough.
        seed: Seeds the stored views.
        hardware: Where they look, and in which type.
        at_once: Samples that they look at together, at the most; None for all that they are given.
        every_step: Store nothing, since more than the outputs is looked at.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        task: Task,
        augmentation: Augmentation,
        views: int,
        seed: int,
        hardware: Hardware,
        at_once: int | None = None,
        *,
        every_step: bool = False,
    ) -> None:
        self.networks = [channels_last(copy.deepcopy(net).to(hardware.device)).eval() for net in teachers]
        self._as_products = [small_maps_as_products(network) for network in self.networks]
        self._task = task
        self._augmentation = augmentation
        self._hardware = hardware
        self._at_once = None if every_step else at_once  # layers are looked at once, and parts are small then
        unchanging = augmentation == Augmentation()
        stored = 0 if every_step else 1 if unchanging else views
        # Those of another seed share no view with these.
        drawn = [np.random.SeedSequence((seed, view)).generate_state(1, np.uint64)[0] for view in range(stored)]
        self._seeds = [int(word) % MOST_SEEDS for word in drawn]
        self._stored: dict[int, list[Tensor]] = {}
        self.notes: list[str] = []
        if self.networks and self._seeds:
            self._check_size()

    @property
    def stored_views(self) -> int:
        """How many views of every image the teachers look at; 0 if these are new ones in every epoch."""
        return len(self._seeds) if self.networks else 0

    @property
    def looks(self) -> int:
        """How many of these they have looked at."""
        return len(self._stored)

    def seed(self, epoch: int) -> int | None:
        """Seeds the views of an epoch, from 1; None if they should be new ones.

        They are the same where nobody teaches: what labels alone would come to is compared with on the same images.
        """
        return self._seeds[(epoch - 1) % len(self._seeds)] if self._seeds else None

    def prepare(self, epoch: int, on_share: OnShare | None = None) -> None:
        """Lets the teachers look at the views of an epoch, if these are stored and haven't been looked at yet.

        In a fixed order and in fixed batches, so that the outputs are the same bits in every process.
        """
        seed = self.seed(epoch)
        if seed is None or seed in self._stored or not self.networks:
            return
        count = self._task.training_samples
        size = min(TEACHING_BATCH, self._at_once or TEACHING_BATCH)
        cuts = np.split(np.arange(count), range(size, count, size))
        parts: list[list[Tensor]] = []
        team, failed = current_team(), None
        mine = cuts[team.rank :: team.size]
        try:
            for batch in self._task.training_batches(mine, self._augmentation, seed):
                answers = self.computed(self._hardware.placed(batch).inputs)
                parts.append([answer.cpu() for answer in answers])
                if on_share is not None:
                    on_share(len(parts) / len(mine))
        except OnnxDistillError as error:  # such as an image that only this process has looked at
            failed = error
        team.agreed(failed)
        everyones = team.gathered(parts)
        in_order = [everyones[place % team.size][place // team.size] for place in range(len(cuts))]
        self._stored[seed] = [torch.cat(outputs) for outputs in zip(*in_order, strict=True)]

    def outputs(self, epoch: int, batch: TrainingBatch) -> list[Tensor]:
        """What every teacher returns for a batch of that epoch: as stored, if they have looked at it."""
        seed = self.seed(epoch)
        if seed is None or seed not in self._stored:
            return self.computed(batch.inputs)
        assert batch.samples is not None, "training batches say which samples they hold"
        return [stored[batch.samples].to(self._hardware.device) for stored in self._stored[seed]]

    def computed(self, inputs: Tensor) -> list[Tensor]:
        """What every teacher returns for inputs `[B, ...]`, which lie where they do, now."""
        parts = torch.split(inputs, self._at_once or len(inputs))
        answers = []
        with torch.no_grad(), self._hardware.autocast():
            for network, as_products in zip(self.networks, self._as_products, strict=True):
                with as_products:
                    # One may work in place on what it gets.
                    answers.append(torch.cat([network(part.clone()) for part in parts]))
        return answers

    def _check_size(self) -> None:
        sample = sum(output.nbytes for output in self.computed(self._task.example_input(1).to(self._hardware.device)))
        size = sample * self._task.training_samples * len(self._seeds)
        if size > STORED_BYTES:
            self._seeds = []
            self.notes.append(
                f"the teacher's outputs for all views would take {size / 1e9:.1f} GB, more than "
                f"{STORED_BYTES / 1e9:.1f}; they were computed in every step instead"
            )
