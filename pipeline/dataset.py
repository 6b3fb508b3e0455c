"""Sources of images and their truth, and the key table each becomes.

A source is configured by a mapping with a ``kind``; ``key_table`` turns it into one Arrow table sorted by key: the
plan's list of work, frozen in the run folder. Labels are class indexes, never ranks or COCO ids; the class names
travel in the table's metadata.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import UsageError
from pipeline.sources.coco import CocoSource, coco_table
from pipeline.sources.folder import FolderSource, folder_table
from pipeline.sources.ilsvrc import IlsvrcSource, ilsvrc_table
from pipeline.sources.listed import ListSource, list_table
from pipeline.sources.selection import Selection, key_shares, select
from pipeline.sources.table import KEY_SCHEMA
from pipeline.sources.voc import VocSource, voc_table

__all__ = [
    "KEY_SCHEMA",
    "CocoSource",
    "FolderSource",
    "IlsvrcSource",
    "ListSource",
    "Source",
    "VocSource",
    "class_names",
    "key_shares",
    "key_table",
    "parse_source",
]

Source = Annotated[FolderSource | IlsvrcSource | CocoSource | VocSource | ListSource, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Source)
_KINDS: dict[str, type[Selection]] = {
    "folder": FolderSource,
    "ilsvrc": IlsvrcSource,
    "coco": CocoSource,
    "voc": VocSource,
    "list": ListSource,
}


def parse_source(given: Mapping[str, Any], where: str = "source") -> Any:
    """The source a mapping describes. Raises UsageError naming the field, the value and the nearest valid name."""
    try:
        return _ADAPTER.validate_python(dict(given))
    except ValidationError as error:
        raise _told(error, given, where) from None


def _told(error: ValidationError, given: Mapping[str, Any], where: str) -> UsageError:
    # A misspelt field leaves the right one missing: the misspelling is what the user can see.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
    kind = given.get("kind")
    if first["type"].startswith("union_tag"):
        near = difflib.get_close_matches(str(kind), _KINDS, 1) or list(_KINDS)
        return UsageError(f"kind: {kind!r} is no kind of source", where=where, cure=f"write {' or '.join(near)}")
    names = list(_KINDS[str(kind)].model_fields)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, names, 2)
        cure = f"did you mean {' or '.join(near)}?" if near else f"a {kind} source has: {', '.join(names)}"
        return UsageError(f"{field}: unknown field (value {first['input']!r})", where=where, cure=cure)
    value = "" if first["type"] == "missing" else f" (value {first['input']!r})"
    return UsageError(
        f"{field}: {first['msg'].removeprefix('Value error, ')}{value}",
        where=where,
        cure=f"a {kind} source has: {', '.join(names)}",
    )


def key_table(source: Any) -> pa.Table:
    """The key table (``KEY_SCHEMA``) of a source, or of the mapping that describes one: sorted by key, keys unique.

    Raises UsageError, naming file, line or field and the cure, for whatever is wrong with the source's files, and
    where the selection leaves nothing.
    """
    source = parse_source(source) if isinstance(source, Mapping) else source
    match source:
        case FolderSource():
            table, where = folder_table(source), source.root
        case IlsvrcSource():
            table, where = ilsvrc_table(source), source.root
        case CocoSource():
            table, where = coco_table(source), source.annotations
        case VocSource():
            table, where = voc_table(source), source.root
        case ListSource():
            table, where = list_table(source), source.path
        case _:
            raise TypeError(f"{type(source).__name__} is not a source")
    return select(table, source, where)


def class_names(table: pa.Table) -> list[str] | None:
    """The class names in label order that a key table carries, None where its source has none."""
    raw = (table.schema.metadata or {}).get(b"classes")
    return None if raw is None else list(json.loads(raw))
