"""The key table: what every source becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError

_BOXES = pa.list_(pa.list_(pa.float32()))

KEY_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # relative posix path, unique, sorted
        pa.field("uri", pa.string(), nullable=False),  # absolute path or URL
        pa.field("label", pa.int32()),  # class index; null: not known
        pa.field("labels", pa.list_(pa.int32())),  # every class present
        pa.field("boxes", _BOXES),  # x0, y0, x1, y1 in pixels of the original image
        pa.field("box_labels", pa.list_(pa.int32())),
        pa.field("masks", pa.list_(pa.string())),  # per box: COCO segmentation as JSON, null where there is none
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("difficult", pa.list_(pa.bool_())),  # per box, VOC's flag; null where the source has no such flag
        pa.field("crowd", pa.list_(pa.bool_())),  # per box, COCO's iscrowd; null where the source has no such flag
    ]
)


def nested(counts: np.ndarray, values: pa.Array) -> pa.ListArray:
    """A list column from how many values each row has and all values in order."""
    offsets = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def box_column(counts: np.ndarray, corners: np.ndarray) -> pa.ListArray:
    """``boxes`` from the number of boxes of each image and all corners, float32 [boxes, 4]."""
    corners = np.ascontiguousarray(corners, np.float32).reshape(-1, 4)
    inner = pa.ListArray.from_arrays(pa.array(np.arange(0, 4 * len(corners) + 1, 4, dtype=np.int32)), corners.ravel())
    return nested(counts, inner)


def single_labels(label: pa.Array) -> pa.ListArray:
    """``labels`` of a source with one class per image: [label], or [] where it is not known."""
    return nested(np.asarray(pc.is_valid(label)).astype(np.int32), label.drop_null())


def largest(areas: Sequence[float], labels: Sequence[int], passed_over: Sequence[bool]) -> int | None:
    """The class of the largest object; crowds and difficult objects count only where there is nothing else."""
    if not labels:
        return None
    best = max(range(len(labels)), key=lambda i: (not passed_over[i], areas[i], -i))
    return labels[best]


def check_corners(corners: np.ndarray, where: Any, source: str) -> None:
    """UsageError for the first box with a NaN or infinite corner, or with x1 < x0 or y1 < y0.

    ``where(i)`` names the place of box ``i``.
    """
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(corners).all(axis=1)
        ordered = (corners[:, 2] >= corners[:, 0]) & (corners[:, 3] >= corners[:, 1])
    bad = np.flatnonzero(~finite | ~ordered)
    if len(bad) == 0:
        return
    i = int(bad[0])
    fault = (
        "has a corner that is not a finite number" if not finite[i] else "ends before it begins (x1 < x0 or y1 < y0)"
    )
    raise UsageError(
        f"{where(i)}: the box {[float(v) for v in corners[i]]} {fault}",
        where=source,
        cure="boxes are x0, y0, x1, y1 in pixels: correct or remove it",
    )


def assemble(
    columns: Mapping[str, Any],
    *,
    where: str,
    classes: Sequence[str] | None,
    supercategories: Sequence[str] | None = None,
) -> pa.Table:
    """The key table from the columns a source knows, sorted by key, the others null.

    Raises UsageError where two rows share a key, naming them.
    """
    rows = len(columns["key"])
    arrays = []
    for field in KEY_SCHEMA:
        column = columns.get(field.name)
        if column is None:
            arrays.append(pa.nulls(rows, field.type))
            continue
        array = column if isinstance(column, pa.Array) else pa.array(column, field.type)
        arrays.append(array if array.type == field.type else array.cast(field.type))
    _refuse_passwords(arrays[KEY_SCHEMA.get_field_index("uri")], where)
    metadata: dict[str, str] = {}
    if classes is not None:
        metadata["classes"] = json.dumps(list(classes), ensure_ascii=False)
    if supercategories is not None:
        metadata["supercategories"] = json.dumps(list(supercategories), ensure_ascii=False)
    table = pa.Table.from_arrays(arrays, schema=KEY_SCHEMA.with_metadata(metadata))
    keys = arrays[0]
    if rows > 1 and not pc.all(pc.less_equal(keys[:-1], keys[1:])).as_py():
        table = table.take(pc.sort_indices(keys))
        keys = table.column("key").combine_chunks()
    _require_unique(keys, where)
    return table


def _refuse_passwords(uris: pa.Array, where: str) -> None:
    """The table is written into the run, and read by every worker."""
    bad = pc.match_substring_regex(uris, r"^[\w+.-]+://[^/@\s]*:[^/@\s]*@")
    if pc.any(bad).as_py():
        raise UsageError(
            f"the address {uris.filter(bad)[0].as_py()!r} has a password in it",
            where=where,
            cure="credentials come from the environment only",
        )


def _require_unique(keys: pa.Array, where: str) -> None:
    if len(keys) < 2:
        return
    same = pc.equal(keys[:-1], keys[1:])
    if not pc.any(same).as_py():
        return
    twice = keys[1:].filter(same).unique()
    shown = ", ".join(repr(key) for key in twice[:5].to_pylist())
    more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
    raise UsageError(
        f"{len(twice)} keys stand for more than one image: {shown}{more}", where=where, cure="name each image once"
    )
