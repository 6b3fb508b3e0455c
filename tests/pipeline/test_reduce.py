"""The reduction tree: its shape depends on the number of shards alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline import reduce


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
