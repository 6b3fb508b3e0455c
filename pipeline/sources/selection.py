"""Which images of a source are taken: keys, exclusions, a share, a sample, a limit."""

from __future__ import annotations

import hashlib
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.errors import UsageError
from pipeline.sources.files import absolute, read_lines

_CHUNK = 65_536


class Selection(BaseModel):
    """Applied in this order. Every rule looks at keys only, so it picks the same images on every machine.

    ``keys`` and ``exclude`` are a file with one entry a line, or a list in the config. An entry is a key, a file name
    with or without its suffix, or a pattern with ``*`` and ``?`` over the whole key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: str | list[str] | None = None
    exclude: str | list[str] | None = None
    share: Annotated[tuple[float, float] | None, Field(description="[lo, hi) of the key hash: disjoint splits")] = None
    sample: Annotated[int | None, Field(ge=1, description="this many images, drawn by key hash and seed")] = None
    seed: int = 0
    limit: Annotated[int | None, Field(ge=1, description="the first n images by key")] = None

    @field_validator("share")
    @classmethod
    def _share_is_a_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 1:
            raise ValueError("share is [lo, hi) with 0 <= lo < hi <= 1, e.g. [0, 0.5] and [0.5, 1] for two halves")
        return value


def key_shares(keys: pa.Array, purpose: str) -> np.ndarray:
    """A number in [0, 1) per key, float64 [n]: blake2b of the key alone, so it never depends on the other keys."""
    person = hashlib.blake2b(purpose.encode(), digest_size=16).digest()
    hashes = np.empty(len(keys), np.uint64)
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK].to_pylist()
        digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8, person=person).digest() for key in chunk)
        hashes[start : start + len(chunk)] = np.frombuffer(digests, "<u8")
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def select(table: pa.Table, rule: Selection, where: str) -> pa.Table:
    """The rows the rule takes, still sorted by key. Raises UsageError where none is left or an entry names nothing."""
    if rule.keys is not None:
        table = table.filter(_named(table, rule.keys, where, "keys", every=True))
    if rule.exclude is not None:
        table = table.filter(pc.invert(_named(table, rule.exclude, where, "exclude", every=False)))
    if rule.share is not None:
        # One fixed purpose: splits are disjoint only where they all hash alike.
        shares = key_shares(_keys(table), "share")
        table = table.filter(pa.array((shares >= rule.share[0]) & (shares < rule.share[1])))
    if rule.sample is not None and rule.sample < len(table):
        order = np.argsort(key_shares(_keys(table), f"sample {rule.seed}"), kind="stable")
        table = table.take(pa.array(np.sort(order[: rule.sample])))
    if rule.limit is not None:
        table = table.slice(0, rule.limit)
    if len(table) == 0:
        raise UsageError(
            "no image is left after keys, exclude, share, sample and limit", where=where, cure="widen them"
        )
    return table.combine_chunks()


def _keys(table: pa.Table) -> pa.Array:
    return table.column("key").combine_chunks()


def _named(table: pa.Table, entries: str | list[str], where: str, field: str, *, every: bool) -> pa.Array:
    """Which rows the entries name, boolean [n]; ``every``: each entry must name one."""
    place = where
    if isinstance(entries, str):
        place = absolute(entries)
        entries = read_lines(place)
    keys = _keys(table)
    # Dots start a suffix only in the last part of the path, and not in first place.
    names = pc.replace_substring_regex(keys, r"^.*/", "")
    stems = pc.replace_substring_regex(names, r"(.)\.[^.]*$", r"\1")
    patterns = [entry for entry in entries if "*" in entry or "?" in entry]
    literal = pa.array([entry for entry in entries if entry not in set(patterns)], pa.string())
    hits = np.zeros(len(keys), bool)
    missing = np.ones(len(literal), bool)
    for column in (keys, names, stems):
        hits |= np.asarray(pc.is_in(column, value_set=literal))
        missing &= ~np.asarray(pc.is_in(literal, value_set=column))
    lost = literal.filter(pa.array(missing)).to_pylist()
    for pattern in patterns:
        matched = np.asarray(pc.match_substring_regex(keys, _regex(pattern)))
        if not matched.any():
            lost.append(pattern)
        hits |= matched
    if (every and lost) or not hits.any():
        shown = ", ".join(map(repr, lost[:5])) or "an empty list"
        raise UsageError(f"{field}: no image answers to {shown}", where=place, cure="write keys as the source has them")
    return pa.array(hits)


def _regex(pattern: str) -> str:
    special = {"*": ".*", "?": "."}
    escaped = "".join(special.get(c, "\\" + c if c in r"\.+()[]{}|^$" else c) for c in pattern)
    return f"(?s)^{escaped}$"
