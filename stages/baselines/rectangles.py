"""Boxes that look at nothing: what every method has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stages.metrics.boxes import center_box, whole_image


def center(width: int, height: int, sizes: Sequence[float]) -> NDArray[np.int64]:
    """Centred boxes [sizes, 4], one for each share of the image's sides."""
    return np.stack([center_box(width, height, size) for size in sizes])


def whole(width: int, height: int, sizes: Sequence[float] = ()) -> NDArray[np.int64]:
    """The whole image [1, 4], whatever the sizes."""
    return whole_image(width, height)[None]


RECTANGLES: dict[str, Callable[[int, int, Sequence[float]], NDArray[np.int64]]] = {
    "center": center,
    "whole_image": whole,
}
