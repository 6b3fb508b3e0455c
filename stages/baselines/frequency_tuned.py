"""FT, the frequency-tuned salient region detector (Achanta, Hemami, Estrada, Suesstrunk 2009): colours, no network."""

from __future__ import annotations

from typing import Self

import torch
from torch.nn.functional import conv2d, pad

from stages.asking.colour import rgb_to_lab
from stages.baselines.placement import AtImage
from stages.baselines.query import Query
from stages.baselines.registry import Setting
from stages.preprocess import Preprocess

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class FrequencyTuned(AtImage):
    """Distance in CIELAB of the image, under a 5 x 5 binomial filter, from its own mean colour; edges are repeated.

    The same map whatever the class.
    """

    name = "ft"
    passes = (0.0, 0.0)

    def __init__(self, preprocess: Preprocess | None = None) -> None:
        self.preprocess = preprocess or Preprocess()

    @classmethod
    def build(cls, layer: str | None, setting: Setting) -> Self:
        cls.layers_for(layer, setting)
        return cls(setting.preprocess)

    def maps(self, query: Query) -> torch.Tensor:
        x = query.x.detach()
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (self.preprocess.mean, self.preprocess.std))
        lab = rgb_to_lab((x * std + mean).clamp(0, 1))
        distance = (self._smooth(lab) - lab.mean(dim=(2, 3), keepdim=True)).norm(dim=1)
        return distance[:, None].expand(-1, query.targets.shape[1], -1, -1)

    @staticmethod
    def _smooth(lab: torch.Tensor) -> torch.Tensor:
        kernel = lab.new_tensor(_BINOMIAL)
        out = pad(lab.flatten(0, 1).unsqueeze(1), (2, 2, 2, 2), mode="replicate")
        out = conv2d(conv2d(out, kernel.view(1, 1, 1, 5)), kernel.view(1, 1, 5, 1))
        return out.squeeze(1).unflatten(0, lab.shape[:2])
