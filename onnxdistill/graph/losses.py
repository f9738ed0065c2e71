"""Losses that bring a student's outputs near its teacher's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def standardised(logits: Tensor) -> Tensor:
    """Z-scores of the logits over the last dimension.

    Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation", equation 11; the standard
    deviation is that of the sample, and 1e-7 keeps constant logits finite.

    Args:
        logits: `[..., classes]`.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / (logits.std(-1, keepdim=True) + 1e-7)


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
