"""Reductions: upstream rows in, an answer out, block by block, with partials merged in a fixed tree.

A leaf of the tree is a fixed number of consecutive shards added to one state, and neighbours merge pairwise; so the sum
depends on the plan only, never on the number of workers or on who finished first. A task holds one state, or the two
it merges; those that wait to be merged lie in Ray's object store, on disk where it is full.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline.errors import RaylensError
from pipeline.failures import backoff
from pipeline.growth import autoscaled
from pipeline.options import Resources
from pipeline.progress import Progress
from pipeline.remote_errors import told
from pipeline.shards import Receipt, Shards
from pipeline.signals import RunStopped
from pipeline.steps import Reduction
from pipeline.storage import Folder, UnreachableError
from pipeline.waiting import Patience, cluster_has, in_words, is_free

LEAF_SHARDS = 256  # a leaf is one task
_TOLD_S = 2.0
_TRIES = 8  # at what the storage refuses: about a minute
_ANY = Resources()


@dataclasses.dataclass(frozen=True)
class Part:
    """A committed upstream shard, and the split it belongs to."""

    folder: str
    split: str
    receipt: Receipt


@dataclasses.dataclass(frozen=True)
class Reducing:
    """All that a task must know of a reduction."""

    name: str
    reduction: Reduction
    folder: str  # where its parts and receipts go
    parts: tuple[Part, ...]  # in the order of splits, then shards

    @property
    def blocks(self) -> list[Any]:
        return self.reduction.blocks()

    def leaves(self, block: int) -> list[tuple[Part, ...]]:
        """Upstream parts of a block, in the groups that the tree starts from."""
        parts = (self.parts[block],) if self.reduction.aligned else self.parts
        return [parts[i : i + LEAF_SHARDS] for i in range(0, len(parts), LEAF_SHARDS)] or [()]


def read_part(part: Part, columns: Sequence[str], statuses: Sequence[str] = ("ok",)) -> pa.Table:
    """The rows of an upstream shard that ended so, with ``split`` beside what was asked for."""
    shards = Shards(Folder(part.folder), 0)
    wanted = list(dict.fromkeys(columns))
    if part.split:
        wanted = list(dict.fromkeys(["key", "status", *wanted]))
    table = shards.open(part.receipt, [c for c in wanted if c != "split"])
    if "status" in table.column_names:
        table = table.filter(pc.is_in(table.column("status"), value_set=pa.array(list(statuses), pa.string())))
        if "status" not in columns:
            table = table.drop_columns(["status"])
    if part.split:
        table = table.append_column("split", pa.array([part.split] * table.num_rows, pa.string()))
    return table


def add_leaf(reducing: Reducing, block: int, leaf: int) -> Any:
    """The state of a block over one group of upstream shards."""
    reduction = reducing.reduction
    state = reduction.start(reducing.blocks[block])
    for part in reducing.leaves(block)[leaf]:
        table = _patiently(read_part, part, reduction.columns, getattr(reduction, "statuses", ("ok",)))
        state = reduction.add(state, table)
    return state


def finish_block(reducing: Reducing, block: int, state: Any) -> Receipt:
    """Turn a block's state into rows and commit them."""
    reduction = reducing.reduction
    table = reduction.finish(reducing.blocks[block], state)
    if table.schema.names != reduction.schema.names:
        raise RaylensError(f"{reducing.name} returned columns {table.schema.names}, not {reduction.schema.names}")
    table = table.cast(reduction.schema).replace_schema_metadata(reduction.schema.metadata)
    receipt, _ = _patiently(Shards(Folder(reducing.folder), len(reducing.blocks)).commit, block, table)
    return receipt


def reduce_here(reducing: Reducing, todo: Sequence[int]) -> None:
    """The same in this process: for tests and notebooks."""
    for block in todo:
        states = [add_leaf(reducing, block, leaf) for leaf in range(len(reducing.leaves(block)))]
        finish_block(reducing, block, _merged(states, reducing.reduction.merge))


def _merged(states: list[Any], merge: Callable[[Any, Any], Any]) -> Any:
    """Neighbours merged pairwise, level by level."""
    while len(states) > 1:
        pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
        states = [merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return states[0]


def _patiently(work: Callable[..., Any], *given: Any) -> Any:
    """``work(*given)``, which reads or writes, again after a while where the storage is away."""
    for nth in range(1, _TRIES):
        try:
            return work(*given)
        except UnreachableError:
            time.sleep(backoff(nth))
    return work(*given)


def _merge_task(reducing: Reducing, left: Any, right: Any) -> Any:
    return reducing.reduction.merge(left, right)


def _finish_task(reducing: Reducing, block: int, state: Any) -> Receipt:
    return finish_block(reducing, block, state)


def _whole_task(reducing: Reducing, block: int) -> Receipt:
    # A block of one leaf never leaves its process.
    return finish_block(reducing, block, add_leaf(reducing, block, 0))


def reduce_on_ray(
    reducing: Reducing,
    todo: Sequence[int],
    stop: threading.Event,
    progress: Progress,
    resources: Resources = _ANY,
) -> None:
    """Run the blocks of ``todo`` as Ray tasks, as many at a time as the cluster has places for now."""
    wanted = {"CPU": 1.0}
    gpus = ray.cluster_resources().get("GPU", 0) if resources.gpus != 0 else 0
    if not gpus and resources.gpus and autoscaled():
        gpus = resources.gpus  # they come when they are asked for
    if gpus >= 1 and getattr(reducing.reduction, "accelerated", False):
        wanted["GPU"] = 1.0
    options = {"num_cpus": 1, "num_gpus": wanted.get("GPU", 0), "max_retries": 5}
    reference = ray.put(reducing)
    run = {f: ray.remote(f).options(**options) for f in (add_leaf, _merge_task, _finish_task, _whole_task)}
    waiting = list(todo)
    flying: dict[Any, int] = {}
    # Which of its tasks run, Ray does not tell: only that nothing was free, and that nothing is done since.
    starved = not _free_soon(wanted, stop)
    patience = Patience(
        progress.say, lambda: f"waits for {in_words(wanted)} a task, and none was free; {cluster_has()}"
    )
    while waiting or flying:
        places = int(ray.cluster_resources().get("GPU" if "GPU" in wanted else "CPU", 1))
        while waiting and len(flying) < max(1, min(places, resources.max_workers or places)):
            block = waiting.pop(0)
            flying[_submit(run, reducing, reference, block)] = block
        done, _ = ray.wait(list(flying), timeout=0.5)
        for finished in done:
            flying.pop(finished)
            _result(finished, reducing.name)
            progress.shard_done({"ok": 1})
            starved = False
        if starved:
            patience.tick()
        if stop.is_set():
            for left in flying:
                with contextlib.suppress(Exception):
                    ray.cancel(left, force=True)
            raise RunStopped


def _free_soon(wanted: dict[str, float], stop: threading.Event) -> bool:
    """Whether the cluster has these to spare. What an earlier step gave back is told with a delay."""
    until = time.monotonic() + _TOLD_S
    while not is_free(wanted):
        if time.monotonic() >= until or stop.wait(0.1):
            return False
    return True


def _submit(run: dict[Any, Any], reducing: Reducing, reference: Any, block: int) -> Any:
    leaves = len(reducing.leaves(block))
    if leaves == 1:
        return run[_whole_task].remote(reference, block)
    states = [run[add_leaf].remote(reference, block, leaf) for leaf in range(leaves)]
    return run[_finish_task].remote(reference, block, _merged(states, partial(run[_merge_task].remote, reference)))


def _result(reference: Any, name: str) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise told(error, name) from error
    except ray.exceptions.RayError as error:
        raise RaylensError(
            f"the workers of step '{name}' died again and again ({type(error).__name__})",
            cure="look at the memory of the nodes; smaller blocks need less",
        ) from error
