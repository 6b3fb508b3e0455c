"""What a user writes of a COCO job: splits, a taxonomy, and how the rule is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from jobs.config import JobConfig, Location, Section, located, located_if_file
from pipeline.sources.instances import InstancesSource


def _locate(values: Any, info: ValidationInfo) -> Any:
    if not isinstance(values, Mapping):
        return values
    paths = {"annotations": located, "images": located, "keys": located_if_file, "exclude": located_if_file}
    return {k: paths[k](v, info) if k in paths and isinstance(v, str) else v for k, v in values.items()}


class RuleSection(Section):
    """How the rule is read. The report counts every reading, whichever is chosen."""

    crowds: bool = True  # crowd regions count as objects
    people_only: bool = False  # images with nothing but public classes stay, without a coarse label


class CocoReportSection(Section):
    """What the page shows."""

    examples: int = Field(default=4, ge=0, le=12)  # images of each coarse class
    paper: bool = False  # put the paper's counts beside ours: only for the whole of COCO 2017


class CocoConfig(JobConfig):
    """``raylens coco``: see jobs/configs/coco-2017.yaml for a commented example."""

    splits: dict[str, Annotated[InstancesSource, BeforeValidator(_locate)]]
    taxonomy: Location | None = None  # a taxonomy file; absent: the paper's
    rule: RuleSection = RuleSection()
    report: CocoReportSection = CocoReportSection()

    @field_validator("splits")
    @classmethod
    def _splits_are_folders(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("name at least one split, with its annotations")
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ValueError(f"the split {name!r} becomes a folder: use letters, digits, '_', '-' and '.'")
        return value
