"""FSRCNN (Dong et al., 2016): feature, shrinking, mapping and expanding convolutions, then a transposed one. Luminance.

Two public layouts of its state dict. ``net``: one sequence, net.0 to net.14, each PReLU with one slope. ``parts``:
first_part, mid_part and last_part, each PReLU with a slope for every channel. They also crop the enlarged image
differently: from x3 on the weights of one are a pixel off in the other.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Layout = Literal["net", "parts"]


class Fsrcnn(nn.Module):
    def __init__(self, scale: int, features: int, shrunk: int, mappings: int, layout: Layout) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, size: int) -> list[nn.Module]:
            slopes = 1 if layout == "net" else outputs
            return [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.PReLU(slopes)]

        first, middle = layer(1, features, 5), layer(features, shrunk, 1)
        for _ in range(mappings):
            middle += layer(shrunk, shrunk, 3)
        middle += layer(shrunk, features, 1)
        pad = (8 - scale) // 2 + 1 if layout == "net" else 4
        last = nn.ConvTranspose2d(features, 1, 9, scale, padding=pad, output_padding=2 * pad + scale - 9)
        if layout == "net":
            self.net = nn.Sequential(*first, *middle, last)
        else:
            self.first_part, self.mid_part, self.last_part = nn.Sequential(*first), nn.Sequential(*middle), last
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        net = self.layout == "net"
        found: torch.Tensor = self.net(x) if net else self.last_part(self.mid_part(self.first_part(x)))
        return found


def fsrcnn(scale: int = 2, features: int = 56, shrunk: int = 12, mappings: int = 4, layout: Layout = "net") -> Fsrcnn:
    """FSRCNN(d, s, m) of the paper: ``features``, ``shrunk``, ``mappings``. ValueError for another layout."""
    if layout not in ("net", "parts"):
        raise ValueError(f"layout is {layout!r}: it is net (keys net.0, net.1, ...) or parts (first_part.0, ...)")
    return Fsrcnn(scale, features, shrunk, mappings, layout)
