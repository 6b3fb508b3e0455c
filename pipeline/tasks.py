"""What a worker is told and what it answers: small and picklable, for heavy things are loaded where they are used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pipeline import images
from pipeline.plan import Plan
from pipeline.shards import Receipt
from pipeline.steps import Measure

Range = tuple[int, int]  # of rows: from, and up to but without
Shard = tuple[str, int]  # split, number


class Stopped(Exception):  # noqa: N818 - not an error: the worker was asked to stop between two slices
    """The unfinished shard is dropped; the next run makes it again."""


@dataclasses.dataclass(frozen=True)
class Work:
    """All that a worker must know of a step."""

    id: str
    step: Measure
    keys_url: str
    folders: Mapping[str, str]  # split -> URL of its shards
    plans: Mapping[str, Plan]
    tables: Mapping[str, tuple[str, int]]  # input name -> (URL of the reduction's parts, how many)
    limits: images.Limits
    code_path: tuple[str, ...] = ()  # where the user's own modules lie
    trained: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)  # input -> (URL, digest)
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)  # input -> what its fingerprint stands on


@dataclasses.dataclass(frozen=True)
class Task:
    """One attempt at one shard."""

    split: str
    shard: int
    attempt: int = 1
    suspects: tuple[Range, ...] = ()  # row ranges that killed a worker: run first, apart
    quarantined: Mapping[str, str] = dataclasses.field(default_factory=dict)  # key -> why it is not run
    duplicate: bool = False  # of an attempt that is late: whichever commits first wins
    forgiving: bool = False  # rows that cannot be reached fail, if others of the split can
    work: str = ""  # whose shard it is: steps may have shards of one name

    @property
    def of(self) -> Shard:
        return self.split, self.shard

    @property
    def name(self) -> str:
        return f"{self.split}/{self.shard:05d}"

    @property
    def track(self) -> str:
        """What marks of this attempt are kept under."""
        return f"{self.work} {self.name} again" if self.duplicate else f"{self.work} {self.name}"

    @property
    def apart(self) -> bool:
        """After a failure nothing is decoded ahead or beside: what kills a worker then does so inside its own slice."""
        return self.attempt > 1


@dataclasses.dataclass(frozen=True)
class Done:
    """What became of an attempt: the receipt that stands, and where the time went."""

    receipt: Receipt
    won: bool
    waited_s: float  # for decoding
    computed_s: float
    wrote_s: float
    moved_s: float = 0.0  # of rows decoded elsewhere, on their way here


@dataclasses.dataclass(frozen=True)
class Mark:
    """Said before and after each slice, so that a death can be told from a death inside a slice."""

    task: str
    attempt: int
    range: Range
    begin: bool
    decoding: bool = False  # begun by that: for how long it may take nobody knows
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
