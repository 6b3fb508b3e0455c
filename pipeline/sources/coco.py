"""COCO: an instances json and a folder of images."""

from __future__ import annotations

import json
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.sources.files import absolute, locate, read_json, relative_to, require_folder, require_images
from pipeline.sources.selection import Selection
from pipeline.sources.table import assemble, box_column, check_corners, largest, nested


class CocoSource(Selection):
    """``annotations``: the instances json; ``images``: the folder its file names start at; keys are those names.

    Category ids become class indexes in the order of the ids; names and supercategories travel in the metadata.
    Boxes x, y, w, h become x, y, x + w, y + h. The label is the class of the object with the largest area (crowds only
    where there is nothing else); an image without objects has none. ``crowds: false`` leaves crowd regions out.
    """

    kind: Literal["coco"]
    annotations: str
    images: str
    crowds: bool = True


def coco_table(source: CocoSource) -> pa.Table:
    """The key table, unselected. Raises UsageError naming the file and the entry."""
    path, root = absolute(source.annotations), absolute(source.images)
    require_folder(root, "the image folder")
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part), list) for part in ("images", "annotations", "categories")
    ):
        _fail(path, "has no lists images, annotations and categories", "give an instances json, not captions")
    indexes, names, supercategories = _categories(content["categories"], path)
    images = content["images"]
    row_of: dict[int, int] = {}
    keys: list[str] = []
    widths: list[int | None] = []
    heights: list[int | None] = []
    for at, image in enumerate(images):
        try:
            number, name = image["id"], image["file_name"]
        except (KeyError, TypeError):
            _fail(path, f"images[{at}] has no id or no file_name", "add it")
        if not isinstance(name, str) or type(number) is not int:  # JSON's true is an int to isinstance
            _fail(path, f"images[{at}]: the id is no integer or the file_name no text", "correct it")
        if row_of.setdefault(number, at) != at:
            _fail(path, f"the image id {number} stands twice (images[{row_of[number]}], [{at}])", "keep one")
        keys.append(relative_to(root, name, f"{path}, images[{at}].file_name"))
        for side, column in (("width", widths), ("height", heights)):
            value = image.get(side)
            if value is not None and not (type(value) is int and 0 < value < 2**31):
                _fail(path, f"images[{at}].{side} is {value!r}", "write pixels")
            column.append(value)
    truth = _objects(content["annotations"], row_of, indexes, source.crowds, path)
    columns = {"key": pa.array(keys, pa.string()), "width": widths, "height": heights} | truth
    columns["uri"] = locate(root, columns["key"])
    require_images(columns["uri"], path, f"images is {root}: is it the folder of these file names?")
    return assemble(columns, where=path, classes=names, supercategories=supercategories)


def _fail(path: str, what: str, cure: str) -> NoReturn:
    raise UsageError(what, where=path, cure=cure)


def _categories(categories: list[Any], path: str) -> tuple[dict[int, int], list[str], list[str]]:
    try:
        ordered = sorted(categories, key=lambda c: int(c["id"]))
        names = [str(c["name"]) for c in ordered]
        ids = [int(c["id"]) for c in ordered]
    except (KeyError, TypeError, ValueError):
        _fail(path, "a category has no id or no name", "add it")
    if len(set(ids)) != len(ids):
        _fail(path, "two categories share an id", "give each its own")
    return {number: i for i, number in enumerate(ids)}, names, [str(c.get("supercategory", "")) for c in ordered]


def _objects(
    annotations: list[Any], row_of: dict[int, int], indexes: dict[int, int], crowds: bool, path: str
) -> dict[str, Any]:
    """The columns that come from annotations, in the order of the images."""
    n = len(annotations)
    rows, classes, crowd = np.full(n, -1, np.int64), np.zeros(n, np.int32), np.zeros(n, bool)
    corners, areas = np.zeros((n, 4), np.float64), np.zeros(n)
    masks: list[str | None] = [None] * n
    for at, item in enumerate(annotations):
        try:
            x, y, w, h = (float(value) for value in item["bbox"])
            image, category = item["image_id"], item["category_id"]
            crowd[at] = bool(item.get("iscrowd", 0))
            areas[at] = float(item.get("area", w * h))
            row, index = row_of.get(image), indexes.get(category)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            _fail(path, f"annotations[{at}] lacks image_id, category_id or a bbox of four numbers", "correct it")
        if not np.isfinite(areas[at]):
            _fail(path, f"annotations[{at}].area is {areas[at]}", "write square pixels")
        if row is None:
            _fail(path, f"annotations[{at}]: no image has the id {image!r}", "add the image or remove the annotation")
        if index is None:
            _fail(path, f"annotations[{at}]: no category has the id {category!r}", "add the category")
        rows[at], classes[at], corners[at] = row, index, (x, y, x + w, y + h)
        masks[at] = _mask(item.get("segmentation"), path, at)
    check_corners(corners, lambda i: f"annotations[{i}].bbox", path)
    order = np.argsort(rows, kind="stable")
    if not crowds:
        order = order[~crowd[order]]
    counts = np.bincount(rows[order], minlength=len(row_of)).astype(np.int64)
    ends = np.cumsum(counts)
    label: list[int | None] = []
    present: list[list[int]] = []
    for end, count in zip(ends, counts, strict=True):
        mine = order[end - count : end]
        here = classes[mine].tolist()
        label.append(largest(areas[mine].tolist(), here, crowd[mine].tolist()))
        present.append(sorted(set(here)))
    return {
        "label": label,
        "labels": present,
        "boxes": box_column(counts, corners[order]),
        "box_labels": nested(counts, pa.array(classes[order])),
        "masks": nested(counts, pa.array([masks[i] for i in order], pa.string())),
        "crowd": nested(counts, pa.array(crowd[order])),
    }


def _mask(segmentation: Any, path: str, at: int) -> str | None:
    """The segmentation as compact JSON: polygons, or an RLE with counts and size; None where there is none."""
    if segmentation is None or segmentation == []:
        return None
    polygons = isinstance(segmentation, list) and all(
        isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 for ring in segmentation
    )
    if not polygons and not (isinstance(segmentation, dict) and {"counts", "size"} <= set(segmentation)):
        _fail(path, f"annotations[{at}].segmentation is neither polygons nor an RLE", "correct or remove it")
    return json.dumps(segmentation, separators=(",", ":"))
