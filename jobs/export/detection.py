"""What an export says of an image: its objects, each with a class, a score, a box and perhaps a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detection:
    """``box`` is x0, y0, x1, y1 in pixels of the image, x1 and y1 being edges.

    ``mask`` is [H, W] with a pixel at least; None where nothing is known but the box.
    """

    class_id: int
    score: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None

    @property
    def area(self) -> float:
        if self.mask is not None:
            return float(self.mask.sum())
        x0, y0, x1, y1 = self.box
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)


@dataclass(frozen=True)
class Exported:
    """One image and what was found in it; ``number`` counts from 1 in the order of keys."""

    number: int
    key: str
    width: int
    height: int
    detections: tuple[Detection, ...]
