"""How to run a job. Nothing here is part of any fingerprint or changes what is computed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray's job server gives to the commands it starts


def aloud(line: str) -> None:
    """Print at once, into a file too: Ray may end a driver without emptying Python's buffers."""
    print(line, flush=True)


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a run may use. None of it is part of any fingerprint."""

    address: str | None = None  # of a running cluster; None starts one here
    mode: str = "auto"  # "inline", "spread" or "auto"
    cpus: int | None = None  # of a cluster started here
    gpus: int | None = None  # the same; on a cluster joined 0 means CPU workers, N asks an autoscaler for GPUs
    max_workers: int | None = None  # at a time, however many places there are or an autoscaler can bring
    cpus_per_actor: int | None = None
    gpus_per_actor: float = 1.0
    price_per_hour: float | None = None  # of one worker
    shard_rows: int | None = None  # instead of a minute's work
    micro_batch: int | None = None  # instead of what the stage proposes
    train_workers: int | None = (
        None  # of a training; None: one for each GPU (as many as divide the batch), else 0: the driver
    )

    @property
    def cluster(self) -> str | None:
        """The cluster to join: ``address``, or the one on which a submitted job's driver runs (`ray job submit`)."""
        return self.address or ("auto" if _SUBMITTED in os.environ else None)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run a job; none of it changes what it computes."""

    resources: Resources = Resources()
    allow_failed: float = 0.0  # share of rows that may fail before the exit code says so
    only: tuple[str, ...] = ()  # these steps and whatever they stand on; empty: all
    code_path: tuple[str, ...] = ()
    retry_failed: bool = False  # make the shards again that hold failed rows, those of quarantined keys too
    yes: bool = False  # what a job refuses for its size is wanted
    say: Callable[[str], None] = aloud
