"""Occlusion (Zeiler and Fergus 2014): how far the score falls while a square of the image is grey."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stages.baselines.placement import AtImage
from stages.baselines.query import Query


class Occlusion(AtImage):
    """Each pixel's mean fall over the squares that cover it; signed.

    ``window`` and ``stride`` are shares of the image's shorter side (rounded, at least a pixel). Grey is the mean
    colour, 0 of the normalised input. The last square of a row or column is moved in so that it ends with the image.
    """

    name = "occlusion"

    def __init__(self, *, window: float = 0.25, stride: float = 0.125) -> None:
        if not 0 < stride <= window <= 1:
            raise ValueError(f"occlusion takes 0 < stride <= window <= 1, got stride {stride} and window {window}")
        self.window, self.stride = window, stride
        steps = float(-(-(1 - window) // stride) + 1)
        self.passes = (steps * steps, 0.0)

    def maps(self, query: Query) -> torch.Tensor:
        x = query.x
        height, width = x.shape[2:]
        with torch.no_grad():
            before = query.scores(query.logits).gather(1, query.targets)
            falls = x.new_zeros(*before.shape, height, width)
            covered = x.new_zeros(height, width)
            for rows, columns in self.squares(height, width):
                hidden = x.clone()
                hidden[:, :, rows, columns] = 0
                fall = before - query.scores(query.forward(hidden)).gather(1, query.targets)
                falls[:, :, rows, columns] += fall[:, :, None, None]
                covered[rows, columns] += 1
        return falls / covered

    def squares(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        side = max(1, round(self.window * min(height, width)))
        step = max(1, round(self.stride * min(height, width)))
        for top in _starts(height, side, step):
            for left in _starts(width, side, step):
                yield slice(top, top + side), slice(left, left + side)


def _starts(length: int, side: int, step: int) -> list[int]:
    return sorted({*range(0, length - side + 1, step), length - side})
