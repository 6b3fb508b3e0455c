"""A run is a folder you can ls: where everything of it lies, and its frozen key tables.

RUN/run.json                        config, provenance, steps and their edges
RUN/keys/<split>.parquet, .json     frozen key table and the source it was listed from
RUN/<step>/<split>/                 a measuring step: plan.json, part-*, receipts/, quarantine/
RUN/<step>/<fingerprint8>/<split>/  the same for one that stands on a reduction or a training
RUN/<reduction>/<fingerprint8>/     plan.json, part-*, receipts/, metrics.json
RUN/<training>/                     training.json, checkpoints/<epoch>/, result/: files and a receipt in each
RUN/events/  RUN/report/
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import plan as plans
from pipeline.errors import RaylensError, UsageError
from pipeline.key_table import KeyTable, frozen_of, in_groups
from pipeline.redaction import redact_values
from pipeline.steps import Job, Source
from pipeline.storage import Folder

__all__ = ["KeyTable", "Run"]


class Run:
    """The folder of one run. Opening reads and writes nothing."""

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)
        self.keys = self.folder.child("keys")

    @property
    def url(self) -> str:
        return self.folder.url

    def describe(self) -> dict[str, Any]:
        """run.json; UsageError when this folder is no run."""
        try:
            described = json.loads(self.folder.read("run.json"))
        except FileNotFoundError as error:
            raise UsageError(
                "is not a run folder (it has no run.json)", where=self.url, cure="check the path"
            ) from error
        except ValueError as error:
            raise RaylensError(f"run.json cannot be read: {error}", where=self.url, cure="run the job again") from error
        if not isinstance(described, dict) or not _are_steps(described.get("steps")):
            raise RaylensError("run.json does not describe a run", where=self.url, cure="run the job again")
        return described

    def step_folder(self, step: str, *, split: str = "", fingerprint: str = "") -> Folder:
        """Where a step's plan, shards and receipts lie."""
        return self.folder.child(*[name for name in (step, fingerprint[:8], split) if name])

    def freeze_keys(self, split: str, source: Source) -> KeyTable:
        """List a split once and for all; a later call finds it and refuses a source that was described otherwise."""
        description = redact_values(plans.flatten(json.loads(json.dumps(source.description))))
        try:
            frozen = frozen_of(self.keys, split)
        except FileNotFoundError:
            table = source.list()
            if table.num_rows == 0:
                raise UsageError(
                    "no image was found", where=f"split '{split}'", cure=f"check its source: {source.description}"
                ) from None
            data = in_groups(table)
            self.keys.write(f"{split}.parquet", data)
            # Parquet names the items of lists anew: what will be read is what the digest vouches for.
            written = pq.read_table(pa.BufferReader(data))
            frozen = {"source": description, "rows": table.num_rows, "digest": plans.table_digest(written)}
            self.keys.write(f"{split}.json", json.dumps(frozen, indent=1).encode())  # written last: the commit
        lines = plans.difference(frozen["source"], description)
        if lines:
            raise UsageError(
                f"split '{split}' was listed from another source:\n    " + "\n    ".join(lines),
                where=self.keys.path(f"{split}.json"),
                cure="set these fields back, or give another run folder with --run",
            )
        return self.key_table(split)

    def key_table(self, split: str) -> KeyTable:
        return KeyTable(self.keys, split)

    def splits(self) -> list[str]:
        return sorted(name[:-5] for name in self.keys.list() if name.endswith(".json"))

    def write_description(self, job: Job, provenance: dict[str, Any], fingerprints: dict[str, str]) -> None:
        """run.json, rewritten by each driver: what the run is now. Frozen things stand in plans and keys."""
        steps = [
            {
                "name": step.name,
                "kind": type(step).__name__.lower(),
                "upstream": list(step.upstream),
                "splits": list(step.splits),
                "keyed": job.keyed(step.name),
                "fingerprint": fingerprints.get(step.name, ""),
                "label": getattr(step, "label", ""),
            }
            for step in job.steps
        ]
        config = redact_values(job.config)
        described = {"job": job.name, "config": config, "steps": steps, "provenance": provenance}
        self.folder.write("run.json", json.dumps(described, indent=1).encode())


def _are_steps(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(step, dict) and isinstance(step.get("name"), str) for step in found
    )
