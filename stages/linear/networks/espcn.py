"""ESPCN (Shi et al., 2016): three convolutions with tanh, then a pixel shuffle. Luminance; receptive field 9.

Two public layouts of its state dict. ``net``: one sequence, net.0, net.2 and net.4, with a sigmoid at the end.
``parts``: first_part.0, first_part.2 and last_part.0, without one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Layout = Literal["net", "parts"]


class Espcn(nn.Module):
    def __init__(self, scale: int, widths: tuple[int, int], layout: Layout) -> None:
        super().__init__()
        first, second = widths
        features = [nn.Conv2d(1, first, 5, padding=2), nn.Tanh(), nn.Conv2d(first, second, 3, padding=1), nn.Tanh()]
        enlarged = [nn.Conv2d(second, scale**2, 3, padding=1), nn.PixelShuffle(scale)]
        if layout == "net":
            self.net = nn.Sequential(*features, *enlarged, nn.Sigmoid())
        else:
            self.first_part, self.last_part = nn.Sequential(*features), nn.Sequential(*enlarged)
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(x) if self.layout == "net" else self.last_part(self.first_part(x))
        return found


def espcn(scale: int = 2, first: int = 64, second: int = 32, layout: Layout = "net") -> Espcn:
    """``first`` and ``second`` are the channels of the hidden layers. ValueError for another layout."""
    if layout not in ("net", "parts"):
        raise ValueError(f"layout is {layout!r}: it is net (keys net.0, net.2, ...) or parts (first_part.0, ...)")
    return Espcn(scale, (first, second), layout)
