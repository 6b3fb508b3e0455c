"""COCO-format instances of any size as a key table of which classes each image shows, for relabelling.

Objects365 has 30 million annotations: the file streams by, and of an annotation only its numbers and its place in the
file stay, about 40 bytes. What is wrong is refused, or rejected by name and counted.
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
from pipeline.sources.instance_entries import annotation_problem, file_name, image_problem
from pipeline.sources.json_stream import Entry, JsonStream
from pipeline.sources.selection import Selection, select
from pipeline.sources.table import nested

_LISTS = ("images", "annotations", "categories")
_NAMED = 20  # rejected entries of one kind that are named; all of them are counted

INSTANCE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # the file name as a relative posix path; unique, sorted
        pa.field("uri", pa.string(), nullable=False),  # the key where no image folder is given
        pa.field("file_name", pa.string(), nullable=False),  # as the file has it
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("labels", pa.list_(pa.int32())),  # class indexes present, rising
        pa.field("names", pa.list_(pa.string())),  # of these classes
        pa.field("supercategories", pa.list_(pa.string())),  # of these classes, "" where the file has none
        pa.field("objects", pa.list_(pa.int32())),  # of each of these classes: annotations that are no crowds
        pa.field("crowds", pa.list_(pa.int32())),  # of each of these classes: crowd annotations
        pa.field("classes", pa.int32(), nullable=False),  # of the whole file
        pa.field("bad", pa.string()),  # why an annotation of the image was rejected
        pa.field("place", pa.list_(pa.int64())),  # of the image's entry: first byte, bytes
        pa.field("places", pa.list_(pa.int64())),  # of its annotations' entries: first byte, bytes, first byte, ...
    ]
)


class InstancesSource(Selection):
    """``annotations``: an instances json, .json or .json.gz; ``images``: the folder its file names start at, if there.

    ``bad: refuse`` ends with the first entry that is wrong; ``bad: reject`` leaves such entries out, counts them by
    reason, and marks the images whose annotations they are.
    """

    annotations: str
    images: str | None = None
    bad: Literal["refuse", "reject"] = "refuse"


def instances_table(source: InstancesSource) -> pa.Table:
    """The key table (``INSTANCE_SCHEMA``). Classes are numbered in the order of their ids.

    Metadata: ``categories`` (the file's), ``rejected`` (reason -> count and the first places), ``entries`` (of each
    list), ``others`` ([name, first byte, bytes] of the file's other members) and ``sha256`` of the decompressed file.
    """
    path = absolute(source.annotations)
    root = None if source.images is None else absolute(source.images)
    if root is not None:
        require_folder(root, "the image folder")
    reader = _Reader(path, source.bad == "reject")
    table = reader.read(root)
    if root is not None:
        require_images(table.column("uri"), path, f"images is {root}: is it the folder of these file names?")
    return select(table, source, path)


class _Reader:
    def __init__(self, path: str, reject: bool) -> None:
        self.path, self.reject = path, reject
        self.rejected: dict[str, dict[str, Any]] = {}
        self.keys: list[str] = []
        self.file_names: list[str] = []
        self.sizes: tuple[list[int | None], list[int | None]] = ([], [])
        self.image_ids, self.image_places = array("q"), array("q")
        self.row_of: dict[int, int] = {}
        self.lost: set[int] = set()  # ids of rejected images: theirs are no annotations of unknown images
        self.names: set[str] = set()  # of categories
        self.names_of_files: set[str] = set()
        self.bad: dict[int, str] = {}  # image id -> why its labels are not known
        self.categories: dict[int, dict[str, Any]] = {}
        # Of each annotation: id, image, category, first byte, bytes; crowd.
        self.numbers = array("q")
        self.crowd = array("b")

    def read(self, root: str | None) -> pa.Table:
        stream = JsonStream(self.path, _LISTS)
        others: list[tuple[str, int, int]] = []
        take = {"images": self._image, "annotations": self._annotation, "categories": self._category}
        for entry in stream:
            if entry.at < 0:
                others.append((entry.part, entry.start, entry.length))
            else:
                take[entry.part](entry)
        absent = [name for name in _LISTS if name not in stream.counts]
        if absent:
            self._fail(f"has no list {' and no list '.join(absent)}", "give an instances json, not captions")
        if not self.categories:
            self._fail("its list categories is empty", "give an instances json")
        table = self._table(root)
        metadata = {
            "classes": [c["name"] for c in self._ordered()],
            "categories": self._ordered(),
            "rejected": self.rejected,
            "entries": stream.counts,
            "others": others,
            "sha256": stream.sha256,
        }
        return table.replace_schema_metadata({k: json.dumps(v, ensure_ascii=False) for k, v in metadata.items()})

    def _fail(self, what: str, cure: str) -> NoReturn:
        raise UsageError(what, where=self.path, cure=cure)

    def _wrong(self, kind: str, place: str, what: str) -> None:
        """Refuse the file, or count the entry under ``kind``."""
        if not self.reject:
            self._fail(f"{place}: {what}", "correct it, or count such entries and go on with 'bad: reject'")
        found = self.rejected.setdefault(kind, {"count": 0, "first": []})
        found["count"] += 1
        if len(found["first"]) < _NAMED:
            found["first"].append(f"{place}: {what}")

    def _ordered(self) -> list[dict[str, Any]]:
        return [self.categories[number] for number in sorted(self.categories)]

    def _category(self, entry: Entry) -> None:
        # Without its categories a file has no meaning, so these are never only rejected.
        place, value = f"categories[{entry.at}]", entry.value
        if not isinstance(value, dict) or not is_id(value.get("id")) or not isinstance(value.get("name"), str):
            self._fail(f"{place} has no id (an integer) or no name (text)", "correct it")
        if not isinstance(value.get("supercategory", ""), (str, type(None))):
            self._fail(f"{place}.supercategory is {value['supercategory']!r}", "write a name")
        if value["id"] in self.categories:
            self._fail(f"{place}: two categories share the id {value['id']}", "give each its own")
        if value["name"] in self.names:
            self._fail(f"{place}: two categories are called {value['name']!r}", "give each its own name")
        self.names.add(value["name"])
        self.categories[value["id"]] = value

    def _image(self, entry: Entry) -> None:
        place, value = f"images[{entry.at}]", entry.value
        number = value.get("id") if isinstance(value, dict) else None
        if not is_id(number):
            self._wrong("image without an id", place, f"the id is {number!r}, not an integer")
            return
        if number in self.row_of or number in self.lost:
            self.bad[number] = f"the image id {number} stands twice"
            self._wrong("image id that stands twice", place, f"the image id {number} stands twice")
            return
        problem = self._row(place, value)
        if problem is not None:
            self.lost.add(number)
            self._wrong(problem[0], place, problem[1])
            return
        self.row_of[number] = len(self.image_ids)
        self.image_ids.append(number)
        self.image_places.extend((entry.start, entry.length))

    def _row(self, place: str, value: dict[str, Any]) -> tuple[str, str] | None:
        """Note an image's name and size, or say what is wrong with them."""
        problem = image_problem(value, f"{self.path}, {place}.file_name")
        if problem is not None:
            return problem
        name = file_name(value)
        key = relative_to("the image folder", name, f"{self.path}, {place}.file_name")
        if key in self.names_of_files:
            return "file name that stands twice", f"the file name {name!r} stands twice"
        self.names_of_files.add(key)
        self.keys.append(key)
        self.file_names.append(name)
        for side, sizes in zip(("width", "height"), self.sizes, strict=True):
            sizes.append(value.get(side))
        return None

    def _annotation(self, entry: Entry) -> None:
        value = entry.value
        problem = annotation_problem(value)
        if problem is not None:
            place = f"annotations[{entry.at}]"
            image = value.get("image_id") if isinstance(value, dict) else None
            if is_id(image):
                self.bad.setdefault(image, f"{place}: {problem[1]}")
            self._wrong(problem[0], place, problem[1])
            return
        self.numbers.extend((value["id"], value["image_id"], value["category_id"], entry.start, entry.length))
        self.crowd.append(1 if value.get("iscrowd") else 0)

    def _table(self, root: str | None) -> pa.Table:
        numbers = np.frombuffer(self.numbers, np.int64).reshape(-1, 5)
        crowd = np.frombuffer(self.crowd, np.int8).astype(bool)
        ids = np.frombuffer(self.image_ids, np.int64)
        order = np.argsort(np.array(self.keys, object), kind="stable") if self.keys else np.zeros(0, np.int64)
        rank = np.empty(len(order), np.int64)  # row of the sorted table by position in the file
        rank[order] = np.arange(len(order))
        category_ids = np.array(sorted(self.categories), np.int64)
        row, known_image = find(ids, numbers[:, 1])
        index, known_class = find(category_ids, numbers[:, 2])
        good = self._known(numbers, known_image, known_class)
        rows, index, crowd, numbers = rank[row[good]], index[good], crowd[good], numbers[good]
        by_row = np.argsort(rows, kind="stable")
        places = np.ascontiguousarray(numbers[by_row, 3:5]).ravel()
        counts = np.bincount(rows, minlength=len(order)).astype(np.int64)
        present = self._present(rows, index, crowd, len(order))
        keys = pa.array([self.keys[i] for i in order], pa.string())
        bad = [self.bad.get(int(ids[i])) for i in order]
        columns = {
            "key": keys,
            "uri": keys if root is None else locate(root, keys),
            "file_name": [self.file_names[i] for i in order],
            "image_id": ids[order],
            "width": [self.sizes[0][i] for i in order],
            "height": [self.sizes[1][i] for i in order],
            "classes": np.full(len(order), len(category_ids), np.int32),
            "bad": bad,
            "place": nested(
                np.full(len(order), 2),
                pa.array(np.frombuffer(self.image_places, np.int64).reshape(-1, 2)[order].ravel()),
            ),
            "places": nested(2 * counts, pa.array(places)),
        } | present
        if not len(order):
            self._fail("no image is left" if self.rejected else "its list images is empty", "give an instances json")
        arrays = [
            c if isinstance(c, pa.Array) else pa.array(c, f.type) for f in INSTANCE_SCHEMA for c in [columns[f.name]]
        ]
        return pa.Table.from_arrays(arrays, schema=INSTANCE_SCHEMA)

    def _known(self, numbers: np.ndarray, known_image: np.ndarray, known_class: np.ndarray) -> np.ndarray:
        """Which annotations are of a known image and class, and the first with their id."""
        _, first = np.unique(numbers[:, 0], return_index=True)
        twice = np.ones(len(numbers), bool)
        twice[first] = False
        good = known_image & known_class & ~twice
        for i in np.flatnonzero(~good):
            number, image, category = (int(v) for v in numbers[i, :3])
            place = f"the annotation {number}"
            if not known_image[i] and image in self.lost:
                self._wrong("annotation of a rejected image", place, f"the image {image} was rejected")
                continue
            if not known_image[i]:
                self._wrong("annotation of an unknown image", place, f"no image has the id {image}")
                continue
            kind = "annotation id that stands twice" if twice[i] else "annotation of an unknown category"
            what = f"the annotation id {number} stands twice" if twice[i] else f"no category has the id {category}"
            self.bad.setdefault(image, f"{place}: {what}" if not twice[i] else what)
            self._wrong(kind, place, what)
        return good

    def _present(self, rows: np.ndarray, index: np.ndarray, crowd: np.ndarray, count: int) -> dict[str, pa.Array]:
        """Classes of each row, with how many objects and crowds of each."""
        ordered = self._ordered()
        pairs, inverse = np.unique(rows * len(ordered) + index, return_inverse=True)
        crowds = np.bincount(inverse, weights=crowd, minlength=len(pairs)).astype(np.int32)
        total = np.bincount(inverse, minlength=len(pairs)).astype(np.int32)
        where, labels = pairs // len(ordered), pairs % len(ordered)
        per_row = np.bincount(where, minlength=count).astype(np.int64)
        taken = pa.array(labels)
        texts = {
            "names": pa.array([c["name"] for c in ordered], pa.string()),
            "supercategories": pa.array([c.get("supercategory") or "" for c in ordered], pa.string()),
        }
        return {
            "labels": nested(per_row, pa.array(labels.astype(np.int32))),
            "objects": nested(per_row, pa.array(total - crowds)),
            "crowds": nested(per_row, pa.array(crowds)),
        } | {name: nested(per_row, values.take(taken)) for name, values in texts.items()}
