"""How samples come in batches and parts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from onnxdistill.tasks.base import Objective, TrainingBatch
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, train
from onnxdistill.training.batches import parts_of
from tests.training.small import table


def test_a_last_single_image_does_not_end_the_training(digits: Classification) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
    images = digits.splits.train.subset(np.arange(65))
    task = Classification(dataclasses.replace(digits.splits, train=images))
    assert len(train(network, task, table(epochs=1), 0, Objective()).history) == 1


def test_parts_of_a_batch_add_up_to_it(digits: Classification) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    guidance = Guidance((nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),), views=1)
    objective = Objective(soft_weight=1.0)
    whole, parts = (
        train(network, digits, table(batch_size=100, micro_batch=size, clip_norm=0.5), 0, objective, guidance)
        for size in (None, 30)  # 100 in four parts, and a last batch of 83 in three
    )
    for one, other in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert [record.loss for record in whole.history] == pytest.approx([record.loss for record in parts.history])


@settings(max_examples=200)
@given(whole=st.integers(4, 200), processes=st.integers(1, 4), most=st.integers(2, 64))
def test_all_processes_have_as_many_parts(whole: int, processes: int, most: int) -> None:
    assume(whole >= 2 * processes)
    sizes = []
    for rank in range(processes):
        samples = torch.arange(rank, whole, processes)
        parts = parts_of(TrainingBatch(samples, samples, samples), most, whole, processes)
        assert torch.equal(torch.cat([part.inputs for part in parts]), samples)
        sizes.append([len(part.targets) for part in parts])
    assert len({len(parts) for parts in sizes}) == 1
    assert all(size >= 2 for parts in sizes for size in parts)
    assert all(size <= max(most, 3) for parts in sizes for size in parts)


def test_no_part_of_a_batch_is_a_single_image(digits: Classification) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
    task = Classification(dataclasses.replace(digits.splits, train=digits.splits.train.subset(np.arange(67))))
    assert len(train(network, task, table(epochs=1, batch_size=64, micro_batch=2), 0, Objective()).history) == 1
