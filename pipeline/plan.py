"""Frozen plans: what a step will do, in shards, and the fingerprint that says whether it is still the same step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline import images
from pipeline.errors import RaylensError, UsageError, cure_of_change
from pipeline.estimate import Measured
from pipeline.steps import Measure, Reduce, Train, config_fields, row_schema
from pipeline.storage import Folder

UNMEASURED = Measured(0.0, 0.0, 0.0, 0.0, 0.0, "", 0)  # of a reduction
MIN_ROWS, MAX_ROWS = 16, 4096  # rows of a shard
SHARD_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step on one split, frozen before anything runs. Nothing in it depends on worker counts or prices."""

    step: str
    split: str
    fingerprint: str
    fields: Mapping[str, Any]  # flat: what the fingerprint is made of, kept for a readable diff
    keys: int
    shard_rows: int
    micro_batch: int
    measured: Measured

    @property
    def shards(self) -> int:
        return -(-self.keys // self.shard_rows)

    def range(self, shard: int) -> tuple[int, int]:
        """Rows [lo, hi) of the key table that make this shard."""
        return shard * self.shard_rows, min(self.keys, (shard + 1) * self.shard_rows)

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Plan:
        try:
            fields = json.loads(data)
            plan = cls(**{**fields, "measured": Measured(**fields["measured"])})
            if not (plan.keys >= 0 and plan.shard_rows >= 1 and plan.micro_batch >= 1):
                raise ValueError("keys, shard_rows or micro_batch is out of range")
        except (ValueError, KeyError, TypeError) as error:
            raise RaylensError(
                f"this plan cannot be read ({type(error).__name__}: {error})",
                where=where,
                cure="restore the file, or start a new run folder",
            ) from error
        return plan


def shard_rows(keys: int, micro_batch: int, rows_per_s: float) -> int:
    """Rows of a shard: about a minute's work, 16 to 4,096, at least 8 shards where there are 128 keys.

    A multiple of the micro-batch wherever that leaves those bounds alone, so that no padding is computed inside.
    """
    rows = min(max(int(rows_per_s * SHARD_SECONDS), MIN_ROWS), MAX_ROWS)
    if keys >= 128:
        rows = min(rows, max(MIN_ROWS, keys // 8))
    if rows > micro_batch:
        rows -= rows % micro_batch
    return max(1, min(rows, keys))


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as ``a.b.c``: one line each in a diff."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def fingerprint(fields: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of the flat fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def schema_digest(schema: pa.Schema) -> str:
    """Names, types and notes of the columns."""
    lines = [f"{f.name}:{f.type}:{sorted((f.metadata or {}).items())}" for f in schema]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def table_digest(table: pa.Table) -> str:
    """The content of a key table, independent of how it is chunked or compressed."""
    digest = hashlib.sha256(str(table.schema.remove_metadata()).encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table.combine_chunks().replace_schema_metadata(None))
    digest.update(sink.getvalue())
    return digest.hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One readable line for each field that is not the same."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name, "(absent)"), new.get(name, "(absent)")
        if before != after:
            lines.append(f"{name}: {_short(before)} -> {_short(after)}")
    return lines


def measure_fields(
    step: Measure, limits: images.Limits, keys: Mapping[str, str], upstream: Mapping[str, str]
) -> dict[str, Any]:
    """What a measuring step's fingerprint is made of: never worker counts, addresses, prices or times."""
    return flatten(
        {
            "stage": type(step.stage).__qualname__,
            "version": step.stage.version,
            "config": config_fields(step.stage.config),
            "schema": schema_digest(row_schema(step.stage)),
            "keys": dict(keys),
            "images": {} if step.stage.wants == "records" else limits.model_dump(),
            "inputs": {name: given.digest() for name, given in step.inputs.items()},
            "upstream": dict(upstream),
        }
    )


def train_fields(step: Train, limits: images.Limits, keys: Mapping[str, str]) -> dict[str, Any]:
    """What a training's fingerprint is made of: never worker counts, which the run's "train" events name.

    They are not without effect: see ``pipeline.train.train``.
    """
    return flatten(
        {
            "trainer": type(step.trainer).__qualname__,
            "version": step.trainer.version,
            "config": config_fields(step.trainer.config),
            "keys": dict(keys),
            "images": limits.model_dump() if step.splits else {},
            "inputs": {name: given.digest() for name, given in step.inputs.items()},
        }
    )


def new_plan(
    step: str,
    split: str,
    fields: Mapping[str, Any],
    keys: int,
    micro_batch: int,
    measured: Measured,
    rows: int | None,
) -> Plan:
    """A plan from a micro-run; ``rows`` overrides the size of a shard."""
    micro_batch = min(micro_batch, keys, rows or keys)
    if rows is not None:
        rows -= rows % micro_batch  # a row's place in its slice must not depend on the size of the shard
    return Plan(
        step=step,
        split=split,
        fingerprint=fingerprint(fields),
        fields=dict(fields),
        keys=keys,
        shard_rows=rows or shard_rows(keys, micro_batch, measured.rows_per_s),
        micro_batch=micro_batch,
        measured=measured,
    )


def reduce_fields(step: Reduce, upstream: str) -> dict[str, Any]:
    """What a reduction's fingerprint is made of; ``upstream`` is the digest of the receipts it reads."""
    return flatten(
        {
            "reduction": type(step.reduction).__qualname__,
            "version": step.reduction.version,
            "config": config_fields(step.reduction.config),
            "schema": schema_digest(step.reduction.schema),
            "splits": list(step.splits),
            "upstream": {step.of: upstream},
        }
    )


def freeze(folder: Folder, plan: Plan) -> Plan:
    """Write the plan, or take the one that is there if it is the same step; otherwise refuse and say what changed."""
    if folder.create("plan.json", plan.to_json()):
        return plan
    frozen = load(folder)
    assert frozen is not None
    refuse_other(frozen, plan.fields, folder.path("plan.json"))
    return frozen


def load(folder: Folder) -> Plan | None:
    """The frozen plan of this folder, if there is one."""
    try:
        return Plan.from_json(folder.read("plan.json"), folder.path("plan.json"))
    except FileNotFoundError:
        return None


def refuse_other(frozen: Plan, fields: Mapping[str, Any], where: str) -> None:
    """A measuring step refuses another fingerprint, with a diff that names the fields."""
    lines = difference(frozen.fields, fields)
    if lines:
        raise UsageError(
            f"step '{frozen.step}' was planned with other settings; its rows would not mix:\n    "
            + "\n    ".join(lines),
            where=where,
            cure=cure_of_change(frozen.fields, fields, "give another run folder with --run"),
        )


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "..."
