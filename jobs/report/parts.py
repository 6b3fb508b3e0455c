"""Parts that the pages of several jobs share: where a page lies, names, scripts, totals' notice, settings as text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import yaml

from jobs.report.totals import StepTotals
from pipeline.report.blocks import Notice
from pipeline.report.wording import show
from pipeline.run import Run
from pipeline.storage import Folder


def report_folder(run: Run, described: Mapping[str, Any]) -> Folder:
    """RUN/report/<fingerprint8>/, named by all steps together: where one of them differs, so does the page."""
    marks = {str(step["name"]): str(step["fingerprint"]) for step in described["steps"]}
    mark = hashlib.sha256("".join(marks[name] for name in sorted(marks)).encode()).hexdigest()
    return run.folder.child("report", mark[:8])


def scripts(package: str, names: Iterable[str]) -> dict[str, bytes]:
    """What a page loads, by name: files of the job's package, or of this one where jobs share them."""
    own, shared = files(package), files("jobs.report")
    return {name: ((own if (own / name).is_file() else shared) / name).read_bytes() for name in names}


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


def short_names(keys: Sequence[str]) -> list[str]:
    """Each image's file name without its ending, or the whole key where two share it."""
    stems = [PurePosixPath(key).stem for key in keys]
    return [stem if stem and stems.count(stem) == 1 else key for key, stem in zip(keys, stems, strict=True)]
