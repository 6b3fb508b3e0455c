"""COCO: an instances json and a folder of images.

The file streams by: of an annotation stay its numbers and its segmentation as text, which the key table holds anyway.
"""

from __future__ import annotations

import json
from array import array
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.sources.files import absolute, locate, relative_to, require_folder, require_images
from pipeline.sources.ids import find, is_id
from pipeline.sources.json_stream import Entry, JsonStream
from pipeline.sources.selection import Selection
from pipeline.sources.table import assemble, box_column, check_corners, largest, nested

_LISTS = ("images", "annotations", "categories")
_TEXT = 2**31 - 1  # bytes of all segmentations: what the offsets of one Arrow string column can say


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
    reader = _Reader(path, root)
    columns, names, supercategories = reader.read(source.crowds)
    columns["uri"] = locate(root, columns["key"])
    require_images(columns["uri"], path, f"images is {root}: is it the folder of these file names?")
    return assemble(columns, where=path, classes=names, supercategories=supercategories)


class _Reader:
    """What is kept of the entries as they stream by, in the order of the file."""

    def __init__(self, path: str, root: str) -> None:
        self.path, self.root = path, root
        self.keys: list[str] = []
        self.sizes: dict[str, list[int | None]] = {"width": [], "height": []}
        self.image_ids = array("q")
        self.place_of: dict[int, int] = {}
        self.categories: dict[int, tuple[str, str]] = {}
        self.numbers = array("q")  # of each annotation: image id, category id
        self.corners = array("d")  # of each annotation: x, y, x + w, y + h
        self.areas, self.crowd = array("d"), array("b")
        self.masks, self.mask_ends, self.masked = bytearray(), array("q"), array("b")

    def read(self, crowds: bool) -> tuple[dict[str, Any], list[str], list[str]]:
        """The columns but ``uri``, and the names and supercategories of the classes."""
        stream = JsonStream(self.path, _LISTS)
        take = {"images": self._image, "annotations": self._annotation, "categories": self._category}
        for entry in stream:
            if entry.at >= 0:
                take[entry.part](entry)
        if any(part not in stream.counts for part in _LISTS):
            self._fail("has no lists images, annotations and categories", "give an instances json, not captions")
        ordered = [self.categories[number] for number in sorted(self.categories)]
        columns = {"key": pa.array(self.keys, pa.string()), **self.sizes, **self._objects(crowds)}
        return columns, [name for name, _ in ordered], [above for _, above in ordered]

    def _fail(self, what: str, cure: str) -> NoReturn:
        raise UsageError(what, where=self.path, cure=cure)

    def _image(self, entry: Entry) -> None:
        place, image = f"images[{entry.at}]", entry.value
        try:
            number, name = image["id"], image["file_name"]
        except (KeyError, TypeError):
            self._fail(f"{place} has no id or no file_name", "add it")
        if not isinstance(name, str) or not is_id(number):
            self._fail(f"{place}: the id is no integer or the file_name no text", "correct it")
        if self.place_of.setdefault(number, entry.at) != entry.at:
            self._fail(
                f"the image id {number} stands twice (images[{self.place_of[number]}], [{entry.at}])", "keep one"
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            self._fail(f"{place}.file_name is {name!r}, which is no UTF-8 text", "correct it")
        self.image_ids.append(number)
        self.keys.append(relative_to(self.root, name, f"{self.path}, {place}.file_name"))
        for side, column in self.sizes.items():
            value = image.get(side)
            if value is not None and not (type(value) is int and 0 < value < 2**31):
                self._fail(f"{place}.{side} is {value!r}", "write pixels")
            column.append(value)

    def _category(self, entry: Entry) -> None:
        try:
            number, name = entry.value["id"], str(entry.value["name"])
            above = str(entry.value.get("supercategory") or "")
        except (KeyError, TypeError, ValueError, OverflowError):
            self._fail("a category has no id or no name", "add it")
        if not is_id(number):
            self._fail(f"categories[{entry.at}].id is {number!r}, no integer of 64 bits", "number the categories anew")
        if number in self.categories:
            self._fail("two categories share an id", "give each its own")
        self.categories[number] = name, above

    def _annotation(self, entry: Entry) -> None:
        place, item = f"annotations[{entry.at}]", entry.value
        try:
            x, y, w, h = (float(value) for value in item["bbox"])
            image, category = item["image_id"], item["category_id"]
            area = float(item.get("area", w * h))
            crowd = bool(item.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self._fail(f"{place} lacks image_id, category_id or a bbox of four numbers", "correct it")
        if not np.isfinite(area):
            self._fail(f"{place}.area is {area}", "write square pixels")
        for name, number in (("image", image), ("category", category)):
            if not is_id(number):
                self._unknown(entry.at, name, number)
        self.numbers.extend((image, category))
        self.corners.extend((x, y, x + w, y + h))
        self.areas.append(area)
        self.crowd.append(crowd)
        mask = _mask(item.get("segmentation"), self.path, entry.at)
        self.masks += b"" if mask is None else mask.encode()
        self.masked.append(mask is not None)
        self.mask_ends.append(len(self.masks))
        if len(self.masks) > _TEXT:
            self._fail(
                f"its segmentations are longer than {_TEXT >> 20:,} MB of text (up to {place})",
                "give the images in several files, or one without segmentations",
            )

    def _unknown(self, at: int, what: str, number: Any) -> NoReturn:
        cure = "add the image or remove the annotation" if what == "image" else "add the category"
        self._fail(f"annotations[{at}]: no {what} has the id {number!r}", cure)

    def _objects(self, crowds: bool) -> dict[str, Any]:
        """The columns that come from annotations, in the order of the images."""
        numbers = np.frombuffer(self.numbers, np.int64).reshape(-1, 2)
        rows, known = find(np.frombuffer(self.image_ids, np.int64), numbers[:, 0])
        classes, listed = find(np.array(sorted(self.categories), np.int64), numbers[:, 1])
        for at in np.flatnonzero(~(known & listed))[:1].tolist():
            column = int(known[at])  # the image is asked first
            self._unknown(at, ("image", "category")[column], int(numbers[at, column]))
        classes = classes.astype(np.int32)
        corners = np.frombuffer(self.corners, np.float64).reshape(-1, 4)
        areas, crowd = np.frombuffer(self.areas, np.float64), np.frombuffer(self.crowd, np.int8).astype(bool)
        check_corners(corners, lambda i: f"annotations[{i}].bbox", self.path)
        order = np.argsort(rows, kind="stable")
        if not crowds:
            order = order[~crowd[order]]
        counts = np.bincount(rows[order], minlength=len(self.image_ids)).astype(np.int64)
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
            "masks": nested(counts, self._mask_column().take(pa.array(order))),
            "crowd": nested(counts, pa.array(crowd[order])),
        }

    def _mask_column(self) -> pa.Array:
        """The segmentations in the order of the file, without a Python string for each."""
        offsets = np.zeros(len(self.mask_ends) + 1, np.int32)
        offsets[1:] = np.frombuffer(self.mask_ends, np.int64)
        there = np.packbits(np.frombuffer(self.masked, np.int8).astype(bool), bitorder="little")
        buffers = [pa.py_buffer(there), pa.py_buffer(offsets), pa.py_buffer(self.masks)]
        return pa.Array.from_buffers(pa.string(), len(self.mask_ends), buffers)


def _mask(segmentation: Any, path: str, at: int) -> str | None:
    """The segmentation as compact JSON: polygons, or an RLE with counts and size; None where there is none."""
    if segmentation is None or segmentation == []:
        return None
    polygons = isinstance(segmentation, list) and all(
        isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 for ring in segmentation
    )
    if not polygons and not (isinstance(segmentation, dict) and {"counts", "size"} <= set(segmentation)):
        raise UsageError(
            f"annotations[{at}].segmentation is neither polygons nor an RLE", where=path, cure="correct or remove it"
        )
    return json.dumps(segmentation, separators=(",", ":"))
