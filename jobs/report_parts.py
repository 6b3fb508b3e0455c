"""Parts that the pages of several jobs share: the totals' notice, and settings as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from jobs.chip_report_data import StepTotals
from pipeline.report.blocks import Notice
from pipeline.report.wording import show


def accounting(totals: Iterable[StepTotals]) -> list[Notice]:
    """Totals that do not add up are the one thing a report must shout about."""
    return [
        Notice(
            f"{t.step} ({t.split}) accounts for {show(t.ok + t.filtered + t.failed)} of {show(t.rows)} planned rows",
            "The step is unfinished or its shards are damaged; run `raylens verify` on the run folder.",
            tone="bad",
        )
        for t in totals
        if t.ok + t.filtered + t.failed != t.rows
    ]


def plain(value: Any) -> str:
    """A field of the provenance: JSON where it is a list or a mapping."""
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return show(value)


def as_yaml(config: Mapping[str, Any]) -> str:
    """The resolved configuration, as it could be given again."""
    return str(
        yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True, width=100)
    )
