"""True boxes and masks of a key-table row, brought into the frame in which maps are compared with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.metrics.masks import union_mask
from stages.preprocess import Preprocess


@dataclass(frozen=True)
class Frame:
    """Where boxes are compared: in the image's own pixels, or (``in_input``) clipped in those of the network's input.

    ``inclusive``: boxes name their last pixel (as ILSVRC and VOC do), else its far edge (COCO).
    """

    preprocess: Preprocess
    in_input: bool
    inclusive: bool = True

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the frame for an image of that size."""
        return self.preprocess.size if self.in_input else (height, width)

    def edges(self, boxes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Boxes drawn by first and last pixel, in the convention they are compared in."""
        return boxes if self.inclusive else boxes + np.array([0, 0, 1, 1])

    def objects(self, row: dict[str, Any], classes: Collection[int] | None) -> list[int]:
        """Which of the row's boxes or masks are of these classes; all of them where ``classes`` is None.

        Boxes without labels are all of the image's one class. Numbers are those of the boxes, where there are any.
        ValueError where labels do not match boxes.
        """
        of = row.get("box_labels")
        count = len(row.get("boxes") or ()) or len(row.get("masks") or ())
        if of is not None and len(of) not in (0, count):
            raise ValueError(f"{count} boxes with {len(of)} labels: give one label per box, or none at all")
        return [j for j in range(count) if classes is None or not of or of[j] in classes]

    def boxes(self, row: dict[str, Any], objects: list[int], width: int, height: int) -> NDArray[np.float64] | None:
        """Their boxes [n, 4]; None where the row has no boxes at all. ValueError for a corner that is no number."""
        given = row.get("boxes")
        if not given:
            return None
        found = np.array([given[j] for j in objects], dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(found).all():
            raise ValueError("a box has a coordinate that is not a number")
        return self._moved(found, width, height) if self.in_input else found

    def mask(self, row: dict[str, Any], objects: list[int], width: int, height: int) -> NDArray[np.bool_] | None:
        """All pixels of their masks; None where they have none. A mask that is of no box in particular is of all."""
        masks, boxes = row.get("masks") or (), row.get("boxes") or ()
        mine = [masks[j] for j in objects] if not boxes or len(boxes) == len(masks) else masks
        found = union_mask(mine, width, height)
        if found is not None and self.in_input:
            grey = np.repeat(found[:, :, None].astype(np.uint8) * 255, 3, axis=2)
            found = self.preprocess.pixels(grey)[0] > 127
        return found

    @staticmethod
    def difficult(row: dict[str, Any], objects: list[int]) -> NDArray[np.bool_]:
        """Which of them are flagged as difficult; none where the row has no flags."""
        flags = row.get("difficult") or ()
        return np.array([j < len(flags) and bool(flags[j]) for j in objects], dtype=bool)

    def _moved(self, truths: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
        """Clipped to the input. A box that the crop leaves out stays, empty, so that the image still counts."""
        last = 1.0 if self.inclusive else 0.0
        moved = self.preprocess.to_frame(truths + np.array([0, 0, last, last]), width, height).astype(np.float64)
        moved[:, 2:] -= last
        return moved
