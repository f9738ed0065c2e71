"""How an epoch is cut into batches, and a batch into parts that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onnxdistill.tasks.base import TrainingBatch


def cuts_of(samples: int, batch_size: int, processes: int) -> Sequence[int]:
    """Where an epoch is cut into batches; a last single sample a process joins the batch before, for batch norm."""
    return range(batch_size, samples - 2 * processes + 1, batch_size)


def parts_of(batch: TrainingBatch, most: int | None, whole: int, processes: int) -> list[TrainingBatch]:
    """A process's share of a batch in parts of nearly one size.

    Args:
        batch: The share.
        most: Samples that a part should have at the most; None for one part.
        whole: Samples of the batch in all processes.
        processes: How many there are; all get as many parts.
    """
    if most is None:
        return [batch]
    largest, smallest = -(-whole // processes), whole // processes
    # Batch norm cannot train on a single sample.
    count = max(1, min(-(-largest // most), smallest // 2))
    tensors = [batch.inputs, batch.targets] + ([] if batch.samples is None else [batch.samples])
    return [
        TrainingBatch(*part) for part in zip(*(torch.tensor_split(tensor, count) for tensor in tensors), strict=True)
    ]
