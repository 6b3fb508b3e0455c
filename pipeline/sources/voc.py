"""PASCAL VOC: image sets and XML in VOCdevkit layout."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import UsageError
from pipeline.sources.classes import read_classes
from pipeline.sources.files import (
    MAX_XML_BYTES,
    absolute,
    locate,
    read_lines,
    read_many,
    relative_to,
    require_folder,
    require_images,
)
from pipeline.sources.selection import Selection
from pipeline.sources.table import assemble, box_column, largest, nested
from pipeline.sources.xml import parse_annotation

VOC_CLASSES: list[str] = (  # noqa: SIM905 - twenty words read better than twenty quotes
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()


class VocSource(Selection):
    """``root``: VOCdevkit with the ``years`` to take (["VOC2007"]), or, without years, one year's folder itself.

    ``image_set`` names ImageSets/Main/<image_set>.txt. Corners become 0-based (VOC counts pixels from 1), still
    inclusive. The label is the class of the largest object (difficult ones only where there is nothing else).
    ``difficult: false`` leaves difficult objects out; else the flag stands in the column ``difficult``.
    """

    kind: Literal["voc"]
    root: str
    years: list[str] = Field(default_factory=list)
    image_set: str = "trainval"
    classes: str | list[str] = VOC_CLASSES
    difficult: bool = True


def voc_table(source: VocSource) -> pa.Table:
    """The key table, unselected. Raises UsageError naming the file and the field."""
    root = absolute(source.root)
    require_folder(root, "the VOC folder")
    known = read_classes(source.classes)
    keys: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in ("label", "labels", "width", "height")}
    counts: list[int] = []
    corners: list[np.ndarray] = []
    classes: list[int] = []
    flags: list[bool] = []
    for year in source.years or [""]:
        prefix = f"{relative_to(root, year, 'years')}/" if year else ""
        listing = f"{root}/{prefix}ImageSets/Main/{relative_to(root, source.image_set, 'image_set')}.txt"
        names = [_image_id(line, listing, at) for at, line in enumerate(read_lines(listing))]
        if not names:
            raise UsageError("names no image", where=listing, cure="choose another image_set")
        keys += [f"{prefix}JPEGImages/{name}.jpg" for name in names]
        folder = f"{root}/{prefix}Annotations"
        for file, content in read_many(folder, [f"{name}.xml" for name in names], MAX_XML_BYTES):
            where = f"{folder}/{file}"
            truth = parse_annotation(content, where)
            kept = [i for i, hard in enumerate(truth.difficult) if source.difficult or not hard]
            here = [known.index(truth.names[i], where) for i in kept]
            hard = [truth.difficult[i] for i in kept]
            boxes = truth.corners[kept] - 1.0
            areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
            columns["label"].append(largest(areas.tolist(), here, hard))
            columns["labels"].append(sorted(set(here)))
            columns["width"].append(truth.width)
            columns["height"].append(truth.height)
            counts.append(len(kept))
            corners.append(boxes)
            classes += here
            flags += hard
    key = pa.array(keys, pa.string())
    uris = locate(root, key)
    require_images(uris, root, "put the images into JPEGImages")
    number = np.array(counts)
    truth_columns = {
        "key": key,
        "uri": uris,
        "boxes": box_column(number, np.concatenate(corners)),
        "box_labels": nested(number, pa.array(classes, pa.int32())),
        "difficult": nested(number, pa.array(flags, pa.bool_())),
    }
    return assemble(columns | truth_columns, where=root, classes=known.names)


def _image_id(line: str, listing: str, at: int) -> str:
    # Class-wise sets ("cat_train.txt") carry -1, 0 or 1 behind the name.
    name = line.split()[0]
    if "/" in name or name in (".", "..") or "\\" in name:
        raise UsageError(f"line {at + 1}: {name!r} is no image name", where=listing, cure="write names such as 000001")
    return name
