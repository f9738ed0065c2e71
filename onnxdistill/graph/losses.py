"""Losses that bring a student's outputs near its teacher's: one function and one paper each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_DEVIATION = 0.1
"""Of logits that are standardised."""

SMALLEST_VARIATION = 1e-3
"""Standard deviation over mean, of probabilities that are correlated."""

_NOTHING = 1e-12


def standardised(logits: Tensor) -> Tensor:
    """Z-scores of the logits over the last dimension.

    Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation", equation 11; the standard
    deviation is that of the sample, and counts as `SMALLEST_DEVIATION` at least: the gradients of next to constant
    logits, such as those of a new layer of zeros, would be without bounds.

    Args:
        logits: `[..., classes]`.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / logits.std(-1, keepdim=True).clamp_min(SMALLEST_DEVIATION)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, standardise: bool) -> Tensor:
    """Cross-entropy between softened distributions, less the teacher's own entropy: `T^2 KL(teacher || student)`.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2, where the factor
    `T^2` keeps gradients at one size for all temperatures. With `standardise`, on `standardised` logits.

    Args:
        student: Logits `[B, classes]`.
        teacher: Logits of the same shape; no gradient flows into them if they carry none.
        temperature: Divides the logits.
        standardise: Whether to z-score the logits first.

    Returns:
        The mean over the batch, a scalar.
    """
    if standardise:
        student, teacher = standardised(student), standardised(teacher)
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def decoupled_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, target_weight: float, others_weight: float
) -> Tensor:
    """What is said about the right class, and what about the others among themselves, each with a weight of its own.

    `T^2 (target_weight KL(b_t || b_s) + others_weight KL(q_t || q_s))`, where `b` is the right class against the rest
    and `q` the distribution over the other classes. The sum of the two with weights 1 and 1 - p_t is Hinton's loss.

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", equation 7; with the factor `T^2` of Hinton et al.

    Args:
        student: Logits `[B, classes]`, at least two classes.
        teacher: Logits of the same shape.
        targets: Right classes `[B]`.
        temperature: Divides the logits.
        target_weight: The paper's alpha.
        others_weight: The paper's beta.

    Returns:
        The mean over the batch, a scalar.
    """
    right = F.one_hot(targets, student.shape[-1]).bool()
    log_student, log_teacher = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))

    def against_rest(log_probabilities: Tensor) -> Tensor:
        rest = log_probabilities.masked_fill(right, -torch.inf).logsumexp(-1)
        return torch.stack([log_probabilities[right], rest], -1)

    def among_others(logits: Tensor) -> Tensor:
        others = logits[~right].reshape(len(logits), -1)
        return F.log_softmax(others / temperature, dim=-1)

    target_part = F.kl_div(against_rest(log_student), against_rest(log_teacher), reduction="batchmean", log_target=True)
    others_part = F.kl_div(among_others(student), among_others(teacher), reduction="batchmean", log_target=True)
    return temperature**2 * (target_weight * target_part + others_weight * others_part)


def relation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """One minus the correlation of probabilities, over the classes of a sample and over the samples of a class.

    `T^2 (mean_i (1 - r(s_i, t_i)) + mean_j (1 - r(s_.j, t_.j)))` with Pearson's r: the student has to keep relations,
    not values, which a teacher that is much better would ask too much of.

    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", equations 9 and 10, with equal
    weights of both parts; the factor is that of Hinton et al.

    Args:
        student: Logits `[B, classes]`.
        teacher: Logits of the same shape.
        temperature: Divides the logits.

    Returns:
        A scalar.
    """
    ours, theirs = (F.softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    within = 1.0 - _correlation(ours, theirs).mean()
    across = 1.0 - _correlation(ours.T, theirs.T).mean()
    return temperature**2 * (within + across)


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two layers' outputs.

    Source: Romero et al. 2014, "FitNets: Hints for Thin Deep Nets", equation 3, as a mean instead of half the sum.

    Args:
        student: `[B, ...]`, adapted to the teacher's width.
        teacher: Of the same shape.

    Returns:
        A scalar.
    """
    return F.mse_loss(student, teacher)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the two attention maps: where in the image a layer is active, whatever its width.

    A map is the sum of the squares over the channels, divided by its norm.

    Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", equation 2 with p = 2, squared.

    Args:
        student: `[B, channels, H, W]`.
        teacher: `[B, other channels, H, W]`.

    Returns:
        The mean over the batch, a scalar.
    """
    ours, theirs = (F.normalize(layer.pow(2).sum(1).flatten(1), dim=1) for layer in (student, teacher))
    return (ours - theirs).pow(2).sum(1).mean()


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of rows of positive values.

    Near 0 where a row is constant up to a thousandth of its mean, so that its gradient stays finite.
    """

    def unit(row: Tensor) -> Tensor:
        # By the largest value, whatever its size: squares of small ones would vanish.
        row = row / row.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
        centred = row - row.mean(-1, keepdim=True)
        smallest = SMALLEST_VARIATION * (row.shape[-1] ** 0.5) * row.detach().mean(-1, keepdim=True)
        length: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        return centred / length.maximum(smallest).clamp_min(_NOTHING)

    return (unit(one) * unit(other)).sum(-1)
