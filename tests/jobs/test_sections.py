"""What sections of several jobs' configs mean."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.compare.config import CompareJobConfig
from jobs.sections import inclusive
from pipeline.errors import UsageError

COCO, VOC, LIST = (SimpleNamespace(kind=kind) for kind in ("coco", "voc", "list"))


def test_boxes_name_their_last_pixel_unless_they_are_cocos() -> None:
    assert inclusive(None, VOC, None)
    assert inclusive(None, VOC, LIST)
    assert not inclusive(None, COCO, None)
    assert not inclusive(None, COCO, COCO)
    assert inclusive(None, None)
    assert inclusive(True, COCO)
    assert not inclusive(False, VOC, COCO)
    with pytest.raises(UsageError, match="boxes of COCO name the edge of an object"):
        inclusive(None, VOC, COCO)


def test_boxes_around_index_masks_name_their_last_pixel_whatever_the_source() -> None:
    def of(source: Any, kind: str | None) -> bool:
        masks = None if kind is None else SimpleNamespace(kind=kind)
        data = SimpleNamespace(eval=source, masks=masks, tune=None, tune_masks=None)
        config: Any = SimpleNamespace(data=data, measure=SimpleNamespace(inclusive=None))
        found: bool = CompareJobConfig.inclusive.fget(config)  # type: ignore[attr-defined]
        return found

    assert of(COCO, "index")
    assert not of(COCO, "binary")
    assert not of(COCO, None)
    assert of(VOC, None)
