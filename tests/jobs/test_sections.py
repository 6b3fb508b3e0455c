"""What sections of several jobs' configs mean."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

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
