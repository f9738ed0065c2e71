"""Losses against values worked out by hand."""

from __future__ import annotations

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onnxdistill.graph.losses import (
    attention_loss,
    decoupled_loss,
    distillation_loss,
    hint_loss,
    relation_loss,
    standardised,
)


def test_standardised_by_hand() -> None:
    # Mean 2, sample standard deviation sqrt(((1-2)^2 + 0 + (3-2)^2) / 2) = 1.
    assert torch.allclose(standardised(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[-1.0, 0.0, 1.0]]))
    assert torch.isfinite(standardised(torch.ones(1, 4))).all()


def test_kl_by_hand() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2).
    teacher, student = torch.tensor([[log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert distillation_loss(student, teacher, 1.0, standardise=False).item() == pytest.approx(expected, abs=1e-6)


def test_temperature_by_hand() -> None:
    # At T = 2 the teacher's logits 2 log 3 soften to (3/4, 1/4); the factor T^2 is 4.
    teacher, student = torch.tensor([[2 * log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * log(1.5) + 0.25 * log(0.5))
    assert distillation_loss(student, teacher, 2.0, standardise=False).item() == pytest.approx(expected, abs=1e-6)


def test_batch_mean() -> None:
    teacher, student = torch.tensor([[log(3.0), 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    one = distillation_loss(student[:1], teacher[:1], 1.0, standardise=False)
    assert distillation_loss(student, teacher, 1.0, standardise=False).item() == pytest.approx(one.item() / 2)


logits = st.lists(st.floats(-5, 5), min_size=4, max_size=4).map(lambda row: torch.tensor([row], dtype=torch.float64))


@settings(max_examples=60)
@given(student=logits, teacher=logits, temperature=st.floats(0.5, 8))
def test_never_negative_and_zero_at_the_teacher(student: Tensor, teacher: Tensor, temperature: float) -> None:
    assert distillation_loss(student, teacher, temperature, standardise=False).item() >= -1e-9
    assert distillation_loss(teacher, teacher, temperature, standardise=False).item() == pytest.approx(0, abs=1e-9)


@settings(max_examples=30)
@given(scale=st.floats(0.5, 10), shift=st.floats(-10, 10))
def test_standardising_forgives_scale_and_shift(scale: float, shift: float) -> None:
    teacher = torch.tensor([[1.0, 4.0, 2.0, -1.0]], dtype=torch.float64)
    assert distillation_loss(scale * teacher + shift, teacher, 2.0, standardise=True).item() < 1e-9


def test_gradient_by_finite_differences() -> None:
    teacher = torch.tensor([[1.0, 4.0, 2.0]], dtype=torch.float64)
    student = torch.tensor([[0.3, -1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher, 2.0, standardise=True), student)


def test_decoupled_by_hand() -> None:
    # Teacher (1/2, 1/3, 1/6), student uniform, the first class right. Right against the rest: (1/2, 1/2) and
    # (1/3, 2/3); the others among themselves: (2/3, 1/3) and (1/2, 1/2).
    teacher, student = torch.tensor([[log(3.0), log(2.0), 0.0]]), torch.zeros(1, 3)
    right, label = 0.5 * log(3 / 2) + 0.5 * log(3 / 4), torch.tensor([0])
    others = 2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3)
    assert decoupled_loss(student, teacher, label, 1.0, 1.0, 0.0).item() == pytest.approx(right, abs=1e-6)
    assert decoupled_loss(student, teacher, label, 1.0, 0.0, 1.0).item() == pytest.approx(others, abs=1e-6)
    assert decoupled_loss(student, teacher, label, 1.0, 2.0, 8.0).item() == pytest.approx(
        2 * right + 8 * others, abs=1e-5
    )
    # At T = 2 the doubled logits soften to the same, and the factor is 4.
    assert decoupled_loss(student, 2 * teacher, label, 2.0, 1.0, 0.0).item() == pytest.approx(4 * right, abs=1e-5)


@settings(max_examples=40)
@given(student=logits, teacher=logits, label=st.integers(0, 3), temperature=st.floats(0.5, 4))
def test_decoupled_parts_make_up_the_whole(student: Tensor, teacher: Tensor, label: int, temperature: float) -> None:
    """Zhao et al. 2022, equation 6: KL = KL(right against rest) + (1 - p_right) KL(others)."""
    others = 1.0 - float(torch.softmax(teacher / temperature, -1)[0, label])
    parts = decoupled_loss(student, teacher, torch.tensor([label]), temperature, 1.0, others)
    whole = distillation_loss(student, teacher, temperature, standardise=False)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6, abs=1e-9)


def test_relation_by_hand() -> None:
    # Probabilities (3/4, 1/4), (1/4, 3/4) of the teacher; the student's are the same for the first sample and swapped
    # for the second. Over classes the correlations are 1 and -1; over samples the student is constant, which counts 0.
    teacher = torch.tensor([[log(3.0), 0.0], [0.0, log(3.0)]])
    student = torch.tensor([[log(3.0), 0.0], [log(3.0), 0.0]])
    assert relation_loss(student, teacher, 1.0).item() == pytest.approx((1 - 0) + (1 - 0), abs=1e-5)
    assert relation_loss(teacher, teacher, 1.0).item() == pytest.approx(0, abs=1e-5)
    assert relation_loss(2 * teacher, 2 * teacher, 2.0).item() == pytest.approx(0, abs=1e-5)
    assert relation_loss(teacher.flip(1), teacher, 1.0).item() == pytest.approx(4, abs=1e-5)
    assert relation_loss(2 * teacher.flip(1), 2 * teacher, 2.0).item() == pytest.approx(16, abs=1e-4)


def test_the_relation_of_classes_that_are_next_to_impossible_counts_as_well() -> None:
    # The last class has a probability of some 1e-6; the student has it the other way round.
    teacher = torch.tensor([[5.0, 1.0, -9.0], [1.0, 5.0, -8.0], [5.0, 5.0, -7.0]])
    student = teacher.clone()
    student[:, 2] = torch.tensor([-7.0, -8.0, -9.0])
    assert relation_loss(teacher, teacher, 1.0).item() == pytest.approx(0, abs=1e-5)
    # A correlation of -1, nearly, in the place of 1: the mean over three classes loses two thirds.
    assert relation_loss(student, teacher, 1.0).item() == pytest.approx(2 / 3, abs=0.1)


@pytest.mark.parametrize("impossible", [-60.0, -120.0])
def test_the_relation_of_classes_that_vanish_is_finite(impossible: float) -> None:
    teacher = torch.tensor([[0.0, impossible], [0.1, impossible - 1], [0.0, impossible - 2]])
    student = teacher.clone().requires_grad_()
    loss = relation_loss(student, teacher, 1.0)
    loss.backward()
    assert -1e-4 < loss.item() < 1.5  # a class of the probability 0 has no correlation with anything
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 10


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3])
def test_a_new_head_of_zeros_has_gradients_of_the_usual_size(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student = (scale * torch.randn(8, 10, generator=generator)).requires_grad_()
    distillation_loss(student, torch.randn(8, 10, generator=generator), 2.0, standardise=True).backward()
    assert student.grad is not None
    assert 0.01 < float(student.grad.abs().max()) < 10


def test_equal_logits_have_a_finite_gradient() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    relation_loss(student, torch.eye(3, 4), 1.0).backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1000


def test_gradients_of_the_others_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    labels = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s: decoupled_loss(s, teacher, labels, 2.0, 1.0, 8.0), (student,))
    assert torch.autograd.gradcheck(lambda s: relation_loss(s, teacher, 4.0), (student,))


def test_hint_by_hand() -> None:
    # Differences 1, 0, -2, 1: (1 + 0 + 4 + 1) / 4.
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    assert hint_loss(student, teacher).item() == pytest.approx(1.5)


def test_attention_by_hand() -> None:
    # Two places. The student's single channel (1, 0) has the map (1, 0); the teacher's channels (0, 3) and (0, 4) have
    # (0, 9 + 16), which is (0, 1) when divided by its norm. The squared distance is 2, for one image; of the other, 0.
    student = torch.tensor([[[[1.0, 0.0]]], [[[2.0, 2.0]]]])
    teacher = torch.tensor([[[[0.0, 3.0]], [[0.0, 4.0]]], [[[5.0, 5.0]], [[0.0, 0.0]]]])
    assert attention_loss(student, teacher).item() == pytest.approx((2 + 0) / 2)


def test_gradients_of_features_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 2, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: attention_loss(s, teacher), (student,))
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher[:, :3]), (student,))


def test_a_silent_layer_has_a_finite_gradient() -> None:
    student = torch.zeros(1, 2, 2, 2, requires_grad=True)
    attention_loss(student, torch.ones(1, 2, 2, 2)).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
