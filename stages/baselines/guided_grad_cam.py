"""Guided Grad-CAM (Selvaraju et al. 2017, section 3.3): guided backpropagation x upsampled Grad-CAM."""

from __future__ import annotations

import torch

from stages.baselines.grad_cam import grad_cam
from stages.baselines.guided import guided_gradient
from stages.baselines.placement import AtLayer
from stages.baselines.query import Query
from stages.resize import upsample


class GuidedGradCam(AtLayer):
    """In each pixel the largest colour channel of the positive part, at the input's resolution."""

    name = "guided_grad_cam"
    passes = (1.0, 1.05)

    def maps(self, query: Query) -> torch.Tensor:
        return self.colours(query).clamp(min=0).amax(dim=2)

    def colours(self, query: Query) -> torch.Tensor:
        """Signed, per colour: [B, R, 3, h, w]. Grad-CAM is bilinear here, align_corners=False."""
        cam = grad_cam(query.activation(self.layer), query.layer_gradient(self.layer))
        size = (query.x.shape[2], query.x.shape[3])
        heat = upsample(cam, size)
        return guided_gradient(query) * heat[:, :, None]
