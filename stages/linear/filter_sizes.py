"""Which rows and columns, or how many triplets, are kept of a network, and how large they are: known before a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stages.linear.comb import probes
from stages.linear.field import Field, receptive_field
from stages.linear.stream import Frozen

Places = Literal["auto", "all", "grid"]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class FilterSizes:
    """Of one image. ``whole``: patches are whole images, with their corner at 0, 0."""

    input: Shape  # (C, H, W)
    output: Shape  # (K, h, w)
    bounded: bool  # all places; else a grid of them
    whole: bool
    rows: int  # row images
    columns: int
    row_patch: Shape  # (C, ph, pw)
    column_patch: Shape  # (K, ph, pw)
    passes: int  # probes that find them

    @property
    def numbers(self) -> tuple[int, int]:
        """float32 values of all rows, and of all columns."""
        return self.rows * math.prod(self.row_patch), self.columns * math.prod(self.column_patch)

    @property
    def nbytes(self) -> int:
        """Of an image's result, uncompressed: floats hardly compress."""
        values = sum(self.numbers) + math.prod(self.input) + 2 * math.prod(self.output)
        return 4 * (values + 5 * (self.rows + self.columns))


@dataclass(frozen=True)
class TripletSizes:
    """Of one image's ``k`` singular triplets."""

    input: Shape  # (C, H, W)
    output: Shape  # (K, h, w)
    k: int

    @property
    def numbers(self) -> tuple[int, int]:
        """float32 values of all eigen-inputs, and of all eigen-outputs."""
        return self.k * math.prod(self.input), self.k * math.prod(self.output)

    @property
    def nbytes(self) -> int:
        """Of an image's result, uncompressed, with sigma and certificate of each."""
        return 4 * sum(self.numbers) + 16 * self.k


def filter_sizes(frozen: Frozen, places: Places, grid: int) -> FilterSizes:
    """What ``places`` and ``grid`` (places along each axis) mean for a network.

    ``auto`` is all where the receptive field is bounded, else the grid. ValueError: the output is no image.
    """
    image, output = (tuple((frozen.graph.calls[n].shape or ())[1:]) for n in (frozen.graph.input, frozen.graph.output))
    if len(image) != 3 or len(output) != 3:
        raise ValueError(f"the network gives {list(output)} for an image of {list(image)}, which is no image")
    field = receptive_field(frozen)
    if places == "grid" or (places == "auto" and field is None):
        rows, columns = (c * min(grid, h) * min(grid, w) for c, h, w in (output, image))
        return FilterSizes(image, output, False, True, rows, columns, image, output, rows + columns)
    rows, columns = math.prod(output), math.prod(image)
    if field is None or _covers(field, image, output):
        return FilterSizes(image, output, True, True, rows, columns, image, output, rows + columns)
    y, x = field
    row_patch, column_patch = (image[0], y.width, x.width), (output[0], y.reach, x.reach)
    passes = sum(probes(field, image, output))
    return FilterSizes(image, output, True, False, rows, columns, row_patch, column_patch, passes)


def spread(size: int, count: int) -> list[int]:
    """``count`` places evenly over ``size``, or all where there are fewer."""
    count = min(count, size)
    return [math.floor((i + 0.5) * size / count) for i in range(count)]


def _covers(field: Field, image: Shape, output: Shape) -> bool:
    """A patch is as large as the image along some axis: combs save little then, and whole images say the same."""
    read = (axis.width >= size for axis, size in zip(field, image[1:], strict=True))
    written = (axis.reach >= size for axis, size in zip(field, output[1:], strict=True))
    return any((*read, *written))
