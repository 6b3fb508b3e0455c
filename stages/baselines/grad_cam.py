"""Grad-CAM (Selvaraju et al. 2017, equations 1 and 2)."""

from __future__ import annotations

import torch

from stages.baselines.placement import AtLayer
from stages.baselines.query import Query


def grad_cam(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """ReLU(sum_k alpha_k A_k), alpha_k the spatial mean of d score / d A_k.

    ``activation`` [B, K, h, w], ``gradient`` [B, R, K, h, w] -> [B, R, h, w].
    """
    alpha = gradient.mean(dim=(3, 4))
    return torch.einsum("brk,bkhw->brhw", alpha, activation).clamp(min=0)


class GradCam(AtLayer):
    """Grad-CAM of one layer, by default the last. The score is the query's: the logit unless softmax was asked for."""

    name = "grad_cam"

    def maps(self, query: Query) -> torch.Tensor:
        return grad_cam(query.activation(self.layer), query.layer_gradient(self.layer))
