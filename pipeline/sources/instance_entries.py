"""What makes an image or an annotation of an instances json one that cannot be taken: (kind, what), or None."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.errors import UsageError
from pipeline.sources.files import relative_to
from pipeline.sources.ids import is_id


def file_name(image: dict[str, Any]) -> Any:
    """The image's file name; LVIS has a URL instead: train2017/000000391895.jpg."""
    name = image.get("file_name")
    if name is None and isinstance(image.get("coco_url"), str):
        return "/".join(image["coco_url"].split("/")[-2:])
    return name


def image_problem(image: dict[str, Any], place: str) -> tuple[str, str] | None:
    """Of an image whose id is known to be one."""
    name = file_name(image)
    if not isinstance(name, str):
        return "image without a file name", f"the file_name is {name!r}, not a text"
    for side in ("width", "height"):
        pixels = image.get(side)
        if pixels is not None and not (type(pixels) is int and 0 < pixels < 2**31):
            return "image with a wrong size", f"{side} is {pixels!r}, not pixels"
    try:
        relative_to("the image folder", name, place)
        name.encode()
    except (UsageError, UnicodeEncodeError):
        return "file name outside the image folder", f"the file name {name!r} does not stay inside the image folder"
    return None


def annotation_problem(value: Any) -> tuple[str, str] | None:
    """(kind, what) of an annotation that cannot be taken; the fields pycocotools would fall over later."""
    if not isinstance(value, dict):
        return "annotation of a wrong type", f"is {type(value).__name__}, not an object"
    for field in ("id", "image_id", "category_id"):
        number = value.get(field)
        if not is_id(number):
            return f"annotation without {field}", f"{field} is {_short(number)}, not an integer"
    crowd = value.get("iscrowd", 0)
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        return "annotation with a wrong iscrowd", f"iscrowd is {_short(crowd)}, not 0 or 1"
    box = value.get("bbox")
    if box is not None and not (isinstance(box, list) and len(box) == 4 and _numbers(box)):
        return "annotation with a wrong bbox", f"bbox is {_short(box)}, not four numbers"
    area = value.get("area")
    if area is not None and not _numbers([area]):
        return "annotation with a wrong area", f"area is {_short(area)}, not a number"
    if not isinstance(value.get("segmentation"), (list, dict, type(None))):
        return "annotation with a wrong segmentation", "segmentation is neither polygons nor an RLE"
    return None


def _numbers(values: Sequence[Any]) -> bool:
    return all(type(v) is int or (type(v) is float and math.isfinite(v)) for v in values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
