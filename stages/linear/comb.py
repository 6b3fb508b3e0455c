"""All rows and columns of F at once: impulses wider apart than the receptive field share a pass.

What two impulses read or write does not overlap, so one pass answers for all teeth of the comb. Passes for an image of
any size: S * S * channels, with S the field's width, instead of height * width * channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from stages.linear.field import Axis, Field, receptive_field
from stages.linear.scope import LinearScope, impulses


@dataclass(frozen=True)
class Teeth:
    """The patches of one comb: ``values[a, b]`` (K, h, w) belongs to the impulse at (channel, ys[a], xs[b]).

    Its corner lies at (top[a], left[b]); what lies outside the image is 0.
    """

    channel: int
    ys: range
    xs: range
    top: list[int]
    left: list[int]
    values: torch.Tensor  # (len(ys), len(xs), K, h, w)


class Comb:
    """Rows and columns of a scope whose receptive field is bounded, ``batch`` combs in one pass.

    ValueError where the field is not bounded, or where a probe leaves it.
    """

    def __init__(self, scope: LinearScope, *, batch: int = 16) -> None:
        field = receptive_field(scope.frozen)
        if field is None:
            raise ValueError(
                "the receptive field is not known to be bounded (a linear layer, a global average, an odd padding): "
                "ask for the rows and columns of chosen pixels one by one"
            )
        self.scope, self.field, self.batch = scope, field, batch
        self._verify()

    @property
    def passes(self) -> tuple[int, int]:
        """Probes for all rows, probes for all columns."""
        return probes(self.field, tuple(self.scope.x0.shape[1:]), tuple(self.scope.output.shape[1:]))

    def rows(self) -> Iterator[Teeth]:
        """For every output (channel, y, x) the patch (K, h, w) of the input that it reads."""
        y, x = self.field
        ask, read = self.scope.output, self.scope.x0
        return self._comb(self.scope.adjoint, ask, read, (y.reach, x.reach), [_Reads(y), _Reads(x)])

    def columns(self) -> Iterator[Teeth]:
        """For every input (channel, y, x) the patch (K, h, w) of the output that it writes."""
        y, x = self.field
        ask, read = self.scope.x0, self.scope.output
        return self._comb(self.scope.forward, ask, read, (y.width, x.width), [_Writes(y), _Writes(x)])

    def _comb(
        self,
        answer: Callable[[torch.Tensor], torch.Tensor],
        ask: torch.Tensor,
        read: torch.Tensor,
        apart: tuple[int, int],
        spans: list[_Reads] | list[_Writes],
    ) -> Iterator[Teeth]:
        _, channels, height, width = ask.shape
        combs = [
            (c, range(p, height, apart[0]), range(q, width, apart[1]))
            for c in range(channels)
            for p in range(min(apart[0], height))
            for q in range(min(apart[1], width))
        ]
        for start in range(0, len(combs), self.batch):
            some = combs[start : start + self.batch]
            probes = ask.new_zeros(len(some), *ask.shape[1:])
            for probe, (c, ys, xs) in zip(probes, some, strict=True):
                probe[c, ys.start :: apart[0], xs.start :: apart[1]] = 1
            # One row and one column of zeros more, where indices outside the image point.
            found = torch.nn.functional.pad(answer(probes), (0, 1, 0, 1))
            for image, (c, ys, xs) in zip(found, some, strict=True):
                top, rows = _indices(spans[0], ys, read.shape[2])
                left, columns = _indices(spans[1], xs, read.shape[3])
                values = image[:, rows.view(-1, 1), columns.view(1, -1)]
                values = values.unflatten(2, columns.shape).unflatten(1, rows.shape).permute(1, 3, 0, 2, 4)
                yield Teeth(c, ys, xs, top, left, values)

    def _size(self, k: int) -> torch.Size:
        return (self.scope.x0, self.scope.output)[k].shape[2:]

    def _verify(self) -> None:
        """Columns of the corners and the middle must stay within the field that propagation found."""
        height, width = self._size(0)
        places = [(0, 0), (height - 1, width - 1), (height // 2, width // 2), (height // 2, 0)]
        asked = impulses([(0, y, x) for y, x in places], self.scope.x0)
        if not within(self.field, self.scope.forward(asked), places):
            raise ValueError(
                "an impulse writes outside the receptive field that was derived from the network's calls: ask for rows "
                "and columns one by one"
            )


@dataclass(frozen=True)
class _Reads:
    axis: Axis

    def span(self, i: int) -> tuple[int, int, int]:
        """First and last input that output i reads, and the patch's size."""
        return self.axis.first_input(i), math.floor(self.axis.step * i + self.axis.high), self.axis.width


@dataclass(frozen=True)
class _Writes:
    axis: Axis

    def span(self, j: int) -> tuple[int, int, int]:
        """First and last output that reads input j, and the patch's size."""
        return self.axis.first_output(j), math.floor((j - self.axis.low) / self.axis.step), self.axis.reach


@lru_cache(maxsize=1024)  # the combs of one phase along an axis share theirs
def _indices(spans: _Reads | _Writes, places: range, size: int) -> tuple[list[int], torch.Tensor]:
    """Where each patch begins, and its indices (places, patch); ``size`` stands for what is not of the patch."""
    first, rows = [], []
    for place in places:
        low, high, count = spans.span(place)
        first.append(low)
        rows.append([i if 0 <= i < size and i <= high else size for i in range(low, low + count)])
    return first, torch.tensor(rows)


def probes(field: Field, image: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, int]:
    """Probes for all rows and for all columns of a system from ``image`` (C, H, W) to ``output`` (K, h, w)."""
    y, x = field
    rows = min(y.reach, output[1]) * min(x.reach, output[2]) * output[0]
    return rows, min(y.width, image[1]) * min(x.width, image[2]) * image[0]


_RESIDUE = {torch.float64: 1e-12, torch.float32: 1e-5}  # of a column's largest magnitude


def within(field: Field, columns: torch.Tensor, places: list[tuple[int, int]]) -> bool:
    """Do the columns (N, K, h, w) of inputs at ``places`` (y, x) stay within the field?

    Up to rounding: Winograd and FFT convolutions leave about 1e-8 of the largest weight where there should be 0.
    """
    for column, place in zip(columns, places, strict=True):
        size = column.abs()
        outside = ~(size <= _RESIDUE.get(column.dtype, 1e-2) * size.max())  # NaN is outside
        inside = [_Writes(axis).span(j)[:2] for axis, j in zip(field, place, strict=True)]
        (top, bottom), (left, right) = ((max(low, 0), max(high + 1, 0)) for low, high in inside)
        outside[:, top:bottom, left:right] = False
        if bool(outside.any()):
            return False
    return True
