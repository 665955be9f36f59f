"""Training towards what another network, or the same one before, makes of each input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["distillation_loss"]


def distillation_loss(
    outputs: Tensor, labels: Tensor, targets: Tensor, *, share: float = 0.5, temperature: float = 2.0
) -> Tensor:
    """Cross-entropy with labels, mixed with the divergence from other outputs (Hinton, Vinyals and Dean, 2015).

    `(1 - share) * CE(outputs, labels) + share * T^2 * KL(softmax(targets / T) || softmax(outputs / T))`.

    Args:
        outputs: (batch, classes) logits.
        labels: (batch,) int64.
        targets: (batch, classes) logits of the teacher.
        share: of the divergence, 0 to 1.
        temperature: T; higher ones show more of what the teacher thinks of the wrong classes.

    Returns:
        A scalar, the mean over the batch.
    """
    likeness = F.kl_div(
        F.log_softmax(outputs / temperature, 1),
        F.log_softmax(targets / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - share) * F.cross_entropy(outputs, labels) + share * temperature**2 * likeness
