"""Segmentations of every form as pixels."""

from __future__ import annotations

import numpy as np
import pytest

from stages.coco.masks import mask


def test_masks_of_every_form_agree_with_their_pixels() -> None:
    expected = np.zeros((4, 5), bool)
    expected[1:3, 2] = True
    runs = [9, 2, 9]  # down the columns: 2 x 4 + 1 off, 2 on
    assert np.array_equal(mask({"counts": runs, "size": [4, 5]}, 4, 5), expected)
    from pycocotools import mask as masks

    assert np.array_equal(mask(masks.encode(np.asfortranarray(expected.astype(np.uint8))), 4, 5), expected)
    assert np.array_equal(mask([[2, 1, 3, 1, 3, 3, 2, 3]], 4, 5), expected)
    for wrong in ({"counts": [3], "size": [9, 9]}, {"size": [4, 5]}, [["a"]]):
        with pytest.raises(ValueError, match="segmentation"):
            mask(wrong, 4, 5)
