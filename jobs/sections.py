"""Parts of configs that several jobs share: networks and sources whose paths lie where their config file lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, ValidationInfo

from jobs.config import located, located_if_file
from pipeline import dataset, steps
from pipeline.errors import UsageError
from pipeline.models import ModelSpec

_PATHS = ("root", "path")
_COCO_PATHS = ("annotations", "images")  # elsewhere these are below root, or no paths at all
_PATHS_OR_VALUES = ("classes", "keys", "exclude", "weights")


def _locate(values: Any, info: ValidationInfo) -> Any:
    """Paths of a nested mapping, relative to the config file's folder; other fields as they are."""
    if not isinstance(values, Mapping):
        return values
    found = dict(values)
    paths = (*_PATHS, *(_COCO_PATHS if values.get("kind") == "coco" else ()))
    for name, value in values.items():
        if name in paths and isinstance(value, str):
            found[name] = located(value, info)
        elif name in _PATHS_OR_VALUES and isinstance(value, str):
            found[name] = located_if_file(value, info)
    return found


def _without_crowds(values: Any) -> Any:
    """A crowd's box is around many objects, so no single one can be found by it: left out unless asked for."""
    if isinstance(values, Mapping) and values.get("kind") == "coco":
        return {"crowds": False, **values}
    return values


Network = Annotated[ModelSpec, BeforeValidator(_locate)]
Split = Annotated[dataset.Source, BeforeValidator(_locate)]
JudgedSplit = Annotated[dataset.Source, BeforeValidator(_locate), BeforeValidator(_without_crowds)]  # boxes are judged


def inclusive(asked: bool | None, *splits: Any) -> bool:
    """Whether true boxes name their last pixel, as ILSVRC's and VOC's do, or its far edge, as COCO's.

    UsageError where the sources differ and nobody said which it is.
    """
    found = {split.kind != "coco" for split in splits if split is not None}
    if asked is None and len(found) > 1:
        raise UsageError(
            "boxes of COCO name the edge of an object, the other source's name its last pixel",
            where="data",
            cure="convert one of them, or set inclusive to what both mean",
        )
    return found.pop() if asked is None and found else asked is not False


def source(split: Any, name: str = "", classes: int | None = None) -> steps.Source:
    """A split for the engine: listed once, then frozen with this description.

    With ``classes``, the network's number of them, labels beyond are refused when the split is listed, before any work.
    """

    def listed() -> pa.Table:
        table = dataset.key_table(split)
        if classes is not None:
            _refuse_labels_beyond(table, name, classes)
        return table

    return steps.Source(split.model_dump(mode="json"), listed)


def _refuse_labels_beyond(table: pa.Table, name: str, classes: int) -> None:
    if "label" not in table.column_names:
        return
    labels = table.column("label")
    beyond = table.filter(pc.fill_null(pc.greater_equal(labels, classes), False))
    if not beyond.num_rows:
        return
    names = json.loads((table.schema.metadata or {}).get(b"classes", b"[]"))
    first = beyond.slice(0, 1).to_pylist()[0]
    called = f" ({names[first['label']]})" if first["label"] < len(names) else ""
    raise UsageError(
        f"{beyond.num_rows:,} of {table.num_rows:,} labels are none of the network's {classes:,} classes (0 to "
        f"{classes - 1}): {first['key']} has label {first['label']}{called}",
        where=f"data.{name}",
        cure="use a network trained on these classes, or name the classes in the network's order (data: classes)",
    )
