"""Masks: COCO shapes drawn by hand, and all thresholds at once against one at a time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.metrics.masks import coco_mask, level_mask_ious, mask_iou, png_mask, threshold_mask_ious, union_mask

SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]  # a polygon of edges: columns 2..5, rows 1..3


def drawn() -> np.ndarray:
    mask = np.zeros((5, 8), dtype=bool)
    mask[1:4, 2:6] = True
    return mask


def test_polygons_rle_and_text_draw_the_same_mask() -> None:
    from pycocotools import mask as coco

    columns = drawn().ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], columns.astype(int), [0]])))
    counts = np.diff(np.concatenate([[0], edges, [columns.size]])).tolist()  # background first, column by column
    packed = coco.encode(np.asfortranarray(drawn().astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    for shape in ([SQUARE], SQUARE, json.dumps([SQUARE]), {"counts": counts, "size": [5, 8]}, json.dumps(packed)):
        assert coco_mask(shape, 8, 5).tolist() == drawn().tolist()


def test_parts_add_up_and_nulls_are_skipped() -> None:
    both = union_mask([[SQUARE], None, [[0, 0, 1, 0, 1, 1, 0, 1]]], 8, 5)
    assert both is not None
    assert both.sum() == 13
    assert both[0, 0]
    assert union_mask([None, None], 8, 5) is None
    assert union_mask([[[0, 0, 1, 1]]], 8, 5).sum() == 0  # type: ignore[union-attr]


def test_a_mask_of_another_size_or_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not fit an image of \[5, 9\]"):
        coco_mask({"counts": [40], "size": [5, 8]}, 9, 5)
    with pytest.raises(ValueError, match="polygons or RLE"):
        coco_mask({"points": []}, 8, 5)
    with pytest.raises(ValueError, match="bring both"):
        mask_iou(np.ones((2, 2)), np.ones((3, 3)))


def test_pictures(tmp_path: Path) -> None:
    Image.fromarray(drawn().astype(np.uint8) * 255).save(tmp_path / "grey.png")
    assert png_mask(tmp_path / "grey.png").tolist() == drawn().tolist()
    palette = Image.fromarray(drawn().astype(np.uint8) * 7).convert("L")
    palette.putpalette([0] * 768)
    stream = io.BytesIO()
    palette.save(stream, "PNG")
    assert png_mask(stream.getvalue(), 7).tolist() == drawn().tolist()
    with pytest.raises(ValueError, match="which value"):
        png_mask(stream.getvalue())


def test_mask_iou_by_hand() -> None:
    other = np.zeros((5, 8), dtype=bool)
    other[1:4, 4:8] = True
    assert mask_iou(drawn(), other) == mask_iou(other, drawn()) == 6 / 18
    assert mask_iou(drawn(), drawn()) == 1
    assert mask_iou(np.zeros((2, 2)), np.zeros((2, 2))) == 0


def test_every_threshold_at_once_is_each_in_turn() -> None:
    rng = np.random.default_rng(3)
    thresholds = (0.0, 0.05, 0.3, 0.5, 0.9, 1.0)
    for _ in range(20):
        heat = rng.normal(size=(9, 11)).astype(np.float32)
        mask = rng.random((9, 11)) > 0.6
        clipped = np.maximum(heat, 0)
        cuts = (np.array(thresholds) * float(heat.max())).astype(np.float32)
        expected = [mask_iou(clipped >= cut, mask) for cut in cuts]
        assert threshold_mask_ious(heat, mask, thresholds) == pytest.approx(expected, abs=1e-15)


def test_a_map_without_a_positive_value_keeps_the_whole_image() -> None:
    assert threshold_mask_ious(np.full((5, 8), -1.0), drawn(), [0.2, 0.8]) == pytest.approx([12 / 40] * 2)
    assert level_mask_ious(np.zeros((2, 2), dtype=np.uint8), np.zeros((2, 2)), 1).tolist() == [0]
