"""The reduction tree: its shape depends on the number of shards alone."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import ray

from pipeline import reduce
from pipeline.options import Resources
from pipeline.storage import UnreachableError


def in_pairs(level):
    """The tree of neighbours merged level by level, as nested pairs."""
    level = list(level)
    while len(level) > 1:
        level = [tuple(level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]


class Trace:
    """A reduction whose state is the list of parts it was given, or the pair it was merged from."""

    aligned = False
    columns = ()

    def blocks(self):
        return ["all"]

    def start(self, block):
        return []

    def add(self, state, table):
        return [*state, table]

    def merge(self, left, right):
        return (left, right)


@pytest.mark.parametrize("shards", [0, 1, 255, 256, 257, 512, 513, 1282, 2561])
def test_parts_are_added_in_order_and_leaves_merge_level_by_level(monkeypatch, shards):
    monkeypatch.setattr(reduce, "read_part", lambda part, columns, statuses: part)
    ended = []
    monkeypatch.setattr(reduce, "finish_block", lambda reducing, block, state: ended.append(state))
    reducing = reduce.Reducing("trace", Trace(), "nowhere", tuple(range(shards)))
    reduce.reduce_here(reducing, [0])
    size = reduce.LEAF_SHARDS
    leaves = [list(range(lo, min(lo + size, shards))) for lo in range(0, max(shards, 1), size)]
    assert ended == [in_pairs(leaves)]


def test_tasks_on_ray_are_merged_as_here(monkeypatch):
    def remote(name):
        return SimpleNamespace(remote=lambda *args: (name, *args[1:]))

    run = {f: remote(f.__name__) for f in (reduce.add_leaf, reduce._merge_task, reduce._finish_task)}
    reducing = reduce.Reducing("trace", Trace(), "nowhere", tuple(range(5 * reduce.LEAF_SHARDS)))
    _, block, tree = reduce._submit(run, reducing, "reference", 0)

    def plain(node):
        return node[2] if node[0] == "add_leaf" else tuple(plain(child) for child in node[1:])

    assert (block, plain(tree)) == (0, in_pairs(range(5)))


def test_storage_that_is_away_is_asked_again_for_a_minute(monkeypatch):
    waited = []
    monkeypatch.setattr(reduce, "time", SimpleNamespace(sleep=waited.append))
    failures = [UnreachableError("it answers 503")] * 3

    def work(given):
        if failures:
            raise failures.pop()
        return given

    assert reduce._patiently(work, "rows") == "rows"
    assert waited == [0.5, 1.0, 2.0]
    failures += [UnreachableError("it answers 503")] * 20
    with pytest.raises(UnreachableError):
        reduce._patiently(work, "rows")
    assert 60 < sum(waited[3:]) < 65
    failures[:] = [ValueError("no table")]
    with pytest.raises(ValueError, match="no table"):
        reduce._patiently(work, "rows")


@pytest.mark.parametrize(
    ("resources", "there", "accelerated", "grows", "wanted"),
    [
        (Resources(), {"CPU": 8, "GPU": 2}, True, False, ("CPU", "GPU", 2)),
        (Resources(), {"CPU": 8, "GPU": 2}, False, False, ("CPU", 8)),
        (Resources(gpus=0), {"CPU": 8, "GPU": 2}, True, True, ("CPU", 8)),
        (Resources(gpus=4), {"CPU": 8}, True, True, ("CPU", "GPU", 1)),
        (Resources(gpus=4), {"CPU": 8}, True, False, ("CPU", 8)),  # nobody can bring one: on CPUs, as what came before
        (Resources(), {"CPU": 8}, True, True, ("CPU", 8)),
        (Resources(max_workers=3), {"CPU": 8}, False, False, ("CPU", 3)),
    ],
)
def test_blocks_run_where_the_user_said_and_no_more_at_once_than_there_is_room(
    monkeypatch, resources, there, accelerated, grows, wanted
):
    flying, most, given = [], 0, {}

    def options(**chosen):
        given.update(chosen)
        return SimpleNamespace(remote=lambda *args: flying.append(args) or len(flying))

    def wait(references, timeout):
        nonlocal most
        most = max(most, len(references))
        return references[:1], references[1:]

    world = SimpleNamespace(
        put=lambda value: value,
        remote=lambda f: SimpleNamespace(options=options),
        wait=wait,
        get=lambda reference: None,
        cluster_resources=lambda: there,
        exceptions=ray.exceptions,
    )
    monkeypatch.setattr(reduce, "ray", world)
    monkeypatch.setattr(reduce, "autoscaled", lambda: grows)
    monkeypatch.setattr(reduce, "_free_soon", lambda wanted, stop: True)
    reduction = SimpleNamespace(aligned=False, accelerated=accelerated, blocks=lambda: list(range(20)))
    progress = SimpleNamespace(say=None, shard_done=lambda rows: None)
    reducing = reduce.Reducing("trace", reduction, "nowhere", ())
    reduce.reduce_on_ray(reducing, range(20), threading.Event(), progress, resources)
    assert (given["num_cpus"], given["num_gpus"]) == (1, 1.0 if "GPU" in wanted else 0)
    assert (len(flying), most) == (20, wanted[-1])
