"""Masks that lie beside the images as PNG files, read when a split is listed and kept as COCO run lengths."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco

from jobs.config import Location, LocationOrName, Section
from pipeline.errors import UsageError
from pipeline.sources.classes import Classes, read_classes
from pipeline.sources.files import absolute, read
from pipeline.steps import Source
from stages.metrics.boxes import box_of_mask
from stages.metrics.masks import png_mask, png_values

_LARGEST = 64 << 20  # bytes of one PNG


class Masks(Section):
    """``root``/<image's name>``suffix``. ``binary``: grey above half is the object (ECSSD, MSRA-B, DUTS).

    ``index``: pixels hold class ids (VOC's SegmentationClass, ADE20K's SceneParse150); ``first`` is the pixel value of
    class 0 and ``classes`` names them in that order; larger values (VOC's 255) are no class. Images without a file are
    an error unless ``missing: skip``.
    """

    root: Location
    suffix: str = ".png"
    kind: Literal["binary", "index"] = "binary"
    first: int = 1
    classes: LocationOrName | list[str] | None = None
    missing: Literal["refuse", "skip"] = "refuse"

    def named(self) -> Classes | None:
        return None if self.classes is None else read_classes(self.classes)


def with_masks(source: Source, masks: Masks) -> Source:
    """The source, its rows' masks (and, for an index, their classes and boxes) read from PNG files."""
    return Source({**source.description, "masks": masks.model_dump(mode="json")}, lambda: _added(source.list(), masks))


def _added(table: pa.Table, masks: Masks) -> pa.Table:
    root, known = absolute(masks.root), masks.named()
    found: dict[str, list[Any]] = {"masks": [], "box_labels": [], "boxes": []}
    for key in table["key"].to_pylist():
        name = key.rpartition("/")[2].rpartition(".")[0] + masks.suffix
        try:
            content = read(f"{root}/{name}", _LARGEST)
        except UsageError:
            if masks.missing == "refuse":
                raise
            content = None
        drawn = {} if content is None else _drawn(content, masks, known, f"{root}/{name}")
        found["masks"].append([_encoded(mask) for mask in drawn.values()])
        found["box_labels"].append(list(drawn))
        found["boxes"].append([box_of_mask(mask).tolist() for mask in drawn.values()])  # type: ignore[union-attr]
    # An index draws its own objects: what the source says of how difficult its own are is not of these.
    found["difficult"] = [None] * table.num_rows
    names = ["masks"] if masks.kind == "binary" else list(found)
    for name in names:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(found[name], table.schema.field(at).type))
    return table


def _drawn(content: bytes, masks: Masks, known: Classes | None, where: str) -> dict[int, np.ndarray]:
    """Class id -> mask, those with a pixel."""
    try:
        if masks.kind == "binary":
            mask = png_mask(content)
            return {0: mask} if mask.any() else {}
        values = png_values(content).astype(np.int64) - masks.first
    except (OSError, ValueError) as error:
        raise UsageError(
            f"is no mask: {error}", where=where, cure="give PNG files, 'kind: index' for palettes"
        ) from error
    count = 255 - masks.first if known is None else len(known.names)
    return {int(c): values == c for c in np.unique(values) if 0 <= c < count}


def _encoded(mask: np.ndarray) -> str:
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return json.dumps({"size": [int(n) for n in found["size"]], "counts": found["counts"].decode()})
