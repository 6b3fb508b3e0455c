"""What the two heads are trained on, one value per image, so that an image's loss does not depend on its batch.

The loss of an image is its fine loss plus the cross-entropy of its coarse class. An image without a coarse label
(people only) has no coarse term.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

NO_LABEL = -1  # in a tensor of coarse classes


def focal(logits: Tensor, labels: Tensor, alpha: float = 1.0, gamma: float = 2.0) -> Tensor:
    """Focal loss of the softmax over several true classes: logits and multi-hot labels [B, F] -> [B].

    The mean over an image's true classes of -alpha (1 - p)^gamma log p. With gamma 0 and alpha 1 this is the
    cross-entropy against a distribution that is uniform over the true classes; 0 for an image without any.
    """
    labels = labels.to(logits.dtype)
    log_p = F.log_softmax(logits, dim=1)
    # 1 - p from log p, without cancellation; at p = 1 the power's gradient would be 0/0 for gamma < 1.
    missing = (-log_p.expm1()).clamp(min=1e-12)
    each = -alpha * missing**gamma * log_p if gamma else -alpha * log_p
    return (labels * each).sum(1) / labels.sum(1).clamp(min=1)


def binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each class's sigmoid, summed over the classes: [B, F] twice -> [B].

    The sum, not the mean, is the likelihood of the image's labels, which is what the coarse term is added to.
    """
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").sum(1)


def coarse_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of logits [B, C] and class ids [B] -> [B]; 0 where the id is ``NO_LABEL``."""
    return F.cross_entropy(logits, classes, ignore_index=NO_LABEL, reduction="none")
