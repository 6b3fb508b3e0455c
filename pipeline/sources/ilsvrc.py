"""The ILSVRC layout: wnid folders or a flat val folder, boxes in XML."""

from __future__ import annotations

import csv
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.sources.classes import Classes, read_classes
from pipeline.sources.files import (
    IMAGE_SUFFIXES,
    MAX_XML_BYTES,
    absolute,
    exists,
    list_files,
    locate,
    read_lines,
    read_many,
)
from pipeline.sources.folder import first_folder, found_classes
from pipeline.sources.selection import Selection
from pipeline.sources.table import assemble, box_column, check_corners, nested
from pipeline.sources.xml import parse_annotation

_SYNSETS = ("LOC_synset_mapping.txt", "synsets.txt")


class IlsvrcSource(Selection):
    """``root`` holds Data/CLS-LOC/<split> and Annotations/CLS-LOC/<split>; ``images`` and ``annotations`` name other
    folders, or are absolute.

    Train images lie in wnid folders, which are their classes. Val images lie flat: their class is the one their XML
    names, or ``ground_truth`` gives it: lines "file label" (label a class index or wnid), one wnid a line in the order
    of the files, or LOC_val_solution.csv, which has the boxes too. ``classes``: the wnids in label order (default
    LOC_synset_mapping.txt or synsets.txt in ``root``; else the wnid folders, if there are 1000). ``boxes: false``
    reads no XML. Corners stay as ILSVRC writes them: 0-based, inclusive.
    """

    kind: Literal["ilsvrc"]
    root: str
    split: Literal["train", "val"]
    images: str | None = None
    annotations: str | None = None
    ground_truth: str | None = None
    classes: str | list[str] | None = None
    boxes: bool = True


def ilsvrc_table(source: IlsvrcSource) -> pa.Table:
    """The key table, unselected. Raises UsageError naming file, line or field."""
    root = absolute(source.root)
    folder = _below(root, source.images or f"Data/CLS-LOC/{source.split}")
    keys = list_files(folder, IMAGE_SUFFIXES, "the image folder")
    if len(keys) == 0:
        raise UsageError("no images", where=folder, cure="correct root, split or images")
    wnids = first_folder(keys)
    known = _classes(source, root, wnids)
    label = known.look_up(wnids, folder, keys)
    columns: dict[str, Any] = {"key": keys, "uri": locate(folder, keys)}
    truth: dict[str, Any] = {}
    if source.ground_truth is not None:
        given, truth = _ground_truth(absolute(source.ground_truth), keys, known)
        label = pc.coalesce(label, given)
    if source.boxes and "boxes" not in truth:
        named, truth = _from_xml(source, root, keys, known, flat=label.null_count > 0)
        label = pc.coalesce(label, named)
    if label.null_count:
        at = pc.index(pc.is_null(label), True).as_py()
        raise UsageError(
            f"{label.null_count} images have no class, e.g. {keys[at].as_py()!r}",
            where=folder,
            cure="they lie in no wnid folder: give annotations or ground_truth",
        )
    columns["label"] = label
    columns["labels"] = nested(np.ones(len(keys), np.int64), label)
    return assemble(columns | truth, where=folder, classes=known.names)


def _below(root: str, path: str) -> str:
    return absolute(path if "://" in path or path.startswith("/") else f"{root}/{path}")


def _classes(source: IlsvrcSource, root: str, wnids: pa.Array) -> Classes:
    if source.classes is not None:
        return read_classes(source.classes)
    for name in _SYNSETS:
        if exists(f"{root}/{name}"):
            return read_classes(f"{root}/{name}")
    found = found_classes(wnids)
    if len(found.names) != 1000:
        # A rank among the folders that happen to be there is not the network's class index.
        raise UsageError(
            f"{len(found.names)} wnid folders do not tell the 1000 class indexes",
            where=root,
            cure="set classes to a file of wnids in label order (LOC_synset_mapping.txt)",
        )
    return found


def _stems(keys: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(keys, r"\.[^./]*$", "")


def _from_xml(
    source: IlsvrcSource, root: str, keys: pa.Array, known: Classes, *, flat: bool
) -> tuple[pa.Array, dict[str, Any]]:
    """The class the XML names (int32, null without objects) and the truth columns. Train images may have no XML."""
    folder = _below(root, source.annotations or f"Annotations/CLS-LOC/{source.split}")
    files = list_files(folder, (".xml",), "the annotation folder (boxes: false does without)")
    there = set(np.flatnonzero(np.asarray(pc.is_in(_stems(keys), value_set=_stems(files)))).tolist())
    if not there:
        raise UsageError(
            "no XML file has the name of an image", where=folder, cure="correct annotations or boxes: false"
        )
    if flat and len(there) < len(keys):
        lost = next(i for i in range(len(keys)) if i not in there)
        raise UsageError(
            f"{len(keys) - len(there)} images have no XML, e.g. {keys[lost].as_py()!r}",
            where=folder,
            cure="add them, give ground_truth, or exclude these images",
        )
    rows = sorted(there)
    names = _stems(keys).take(pa.array(rows, pa.int64())).to_pylist()
    n = len(keys)
    counts = np.zeros(n, np.int64)
    widths, heights = np.zeros(n, np.int32), np.zeros(n, np.int32)
    label = np.full(n, -1, np.int32)
    corners: list[np.ndarray] = []
    classes: list[int] = []
    for row, (file, content) in zip(
        rows, read_many(folder, [f"{name}.xml" for name in names], MAX_XML_BYTES), strict=True
    ):
        truth = parse_annotation(content, f"{folder}/{file}")
        here = [known.index(name, f"{folder}/{file}") for name in truth.names]
        counts[row], label[row] = len(here), here[0] if here else -1
        widths[row], heights[row] = truth.width or 0, truth.height or 0
        corners.append(truth.corners)
        classes += here
    annotated = np.zeros(n, bool)
    annotated[rows] = True
    box_labels = nested(counts, pa.array(classes, pa.int32()))
    boxes = box_column(counts, np.concatenate(corners))
    mask = pa.array(annotated)
    columns = {
        # An image without XML has unknown boxes, which is not the same as none.
        "boxes": pc.if_else(mask, boxes, pa.scalar(None, boxes.type)),
        "box_labels": pc.if_else(mask, box_labels, pa.scalar(None, box_labels.type)),
        "width": pa.array(widths, mask=widths == 0),
        "height": pa.array(heights, mask=heights == 0),
    }
    return pa.array(label, mask=label < 0), columns


def _ground_truth(path: str, keys: pa.Array, known: Classes) -> tuple[pa.Array, dict[str, Any]]:
    """Labels, int32 [n], from a ground-truth list; with boxes where the list has them."""
    lines = read_lines(path)
    if lines and lines[0].replace(" ", "").lower() == "imageid,predictionstring":
        return _solution(path, lines, keys, known)
    words = [line.split() for line in lines]
    if all(len(pair) == 1 for pair in words):
        if all(pair[0].isdigit() for pair in words):
            raise UsageError(
                "is the devkit's list of ILSVRC2012_IDs, whose order is not that of the class indexes",
                where=path,
                cure='give a list of "file label" lines (val.txt), of wnids, or LOC_val_solution.csv',
            )
        if len(words) != len(keys):
            raise UsageError(f"{len(words)} lines for {len(keys)} images", where=path, cure="one wnid for each image")
        labels = [known.index(pair[0], f"{path}, line {i + 1}") for i, pair in enumerate(words)]
        return pa.array(labels, pa.int32()), {}
    by_stem: dict[str, int] = {}
    for i, pair in enumerate(words):
        if len(pair) != 2:
            raise UsageError(f"line {i + 1} is not 'file label'", where=path, cure="write file and label")
        by_stem[_stem(pair[0])] = _label(pair[1], known, f"{path}, line {i + 1}")
    return _by_name(by_stem, keys, path), {}


def _label(text: str, known: Classes, where: str) -> int:
    if not text.isdigit():
        return known.index(text, where)
    if int(text) >= len(known.names):
        cure = "labels are class indexes from 0"
        raise UsageError(f"{text} is no class: there are {len(known.names)}, from 0", where=where, cure=cure)
    return int(text)


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0] or name.rpartition("/")[2]


def _by_name(by_stem: dict[str, int], keys: pa.Array, path: str) -> pa.Array:
    labels = []
    for key in keys.to_pylist():
        if (label := by_stem.get(_stem(key))) is None:
            raise UsageError(f"does not list {key!r}", where=path, cure="add a line for it, or exclude the image")
        labels.append(label)
    return pa.array(labels, pa.int32())


def _solution(path: str, lines: list[str], keys: pa.Array, known: Classes) -> tuple[pa.Array, dict[str, Any]]:
    """LOC_val_solution.csv: ``ImageId,"wnid x0 y0 x1 y1 wnid x0 ..."``."""
    by_stem: dict[str, int] = {}
    found: dict[str, tuple[list[int], list[list[float]]]] = {}
    for i, row in enumerate(csv.reader(lines[1:])):
        where = f"{path}, line {i + 2}"
        words = row[1].split() if len(row) == 2 else []
        if not words or len(words) % 5:
            raise UsageError("is not 'image,wnid x0 y0 x1 y1 ...'", where=where, cure="fetch the file again")
        here = [known.index(wnid, where) for wnid in words[::5]]
        try:
            corners = [[float(word) for word in words[at + 1 : at + 5]] for at in range(0, len(words), 5)]
        except ValueError as error:
            raise UsageError(str(error), where=where, cure="write pixels") from None
        check_corners(np.array(corners), lambda j: f"box {j}", where)
        by_stem[row[0]], found[row[0]] = here[0], (here, corners)
    label = _by_name(by_stem, keys, path)
    mine = [found[_stem(key)] for key in keys.to_pylist()]
    counts = np.array([len(here) for here, _ in mine])
    return label, {
        "boxes": box_column(counts, np.array([box for _, corners in mine for box in corners])),
        "box_labels": nested(counts, pa.array([c for here, _ in mine for c in here], pa.int32())),
    }
