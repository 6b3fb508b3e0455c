"""Parts of configs that several jobs share: networks and sources whose paths lie where their config file lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from jobs.config import located, located_if_file
from pipeline import dataset, steps
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


Network = Annotated[ModelSpec, BeforeValidator(_locate)]
Split = Annotated[dataset.Source, BeforeValidator(_locate)]


def source(split: Any) -> steps.Source:
    """A split for the engine: listed once, then frozen with this description."""
    return steps.Source(split.model_dump(mode="json"), _lister(split))


def _lister(split: Any) -> Callable[[], Any]:
    return lambda: dataset.key_table(split)
