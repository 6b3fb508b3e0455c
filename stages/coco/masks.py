"""COCO segmentations as pixels."""

from __future__ import annotations

from typing import Any

import numpy as np


def mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons, an uncompressed or a compressed RLE -> bool [height, width], as pycocotools draws them.

    Raises ValueError where it is none of these, or an RLE of another size.
    """
    from pycocotools import mask as masks

    try:
        if isinstance(segmentation, list):
            rle = masks.merge(masks.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = masks.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        found = masks.decode(rle).astype(bool)
    except Exception as error:  # pycocotools raises what its C code and Cython raise
        raise ValueError(f"a segmentation cannot be drawn: {type(error).__name__}: {error}") from error
    if found.shape != (height, width):
        raise ValueError(
            f"a segmentation of {found.shape[1]} x {found.shape[0]} pixels in an image of {width} x {height}"
        )
    return np.asarray(found)
