"""The reduction tree: its shape depends on the number of leaves alone, and few states are alive at once."""

from __future__ import annotations

import pytest

from pipeline import reduce


class Trace:
    """A reduction whose state is the tree of merges itself."""

    alive = most = 0

    def merge(self, left, right):
        Trace.alive -= 1
        return (left, right)


class Stub:
    reduction = Trace()


def tree(leaves):
    level = list(leaves)
    while len(level) > 1:
        level = [tuple(level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 8, 11, 41])
def test_merging_as_leaves_come_is_merging_level_by_level(monkeypatch, count):
    Trace.alive = Trace.most = 0

    def leaf(reducing, block, number):
        Trace.alive += 1
        Trace.most = max(Trace.most, Trace.alive)
        return number

    monkeypatch.setattr(reduce, "add_leaf", leaf)
    assert reduce.reduce_leaves(Stub(), 0, 0, count) == tree(range(count))
    assert Trace.most <= count.bit_length() + 1


@pytest.mark.parametrize("count", [9, 16, 20, 41])
def test_branches_merged_pairwise_are_the_same_tree(monkeypatch, count):
    monkeypatch.setattr(reduce, "add_leaf", lambda reducing, block, number: number)
    size = reduce.BRANCH_LEAVES
    branches = [reduce.reduce_leaves(Stub(), 0, lo, min(count, lo + size)) for lo in range(0, count, size)]
    assert tree(branches) == tree(range(count))
