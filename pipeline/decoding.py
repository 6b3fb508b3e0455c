"""Where rows are decoded: by threads beside the device, or by tasks on CPUs anywhere, through the object store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline import cluster
from pipeline.estimate import Measured


def spreads(
    asked: str, measured: Sequence[Measured], nodes: Sequence[Mapping[str, Any]], threads: int, scales: bool
) -> tuple[bool, str]:
    """Whether decoding is spread over the cluster, and why. Rows are the same either way.

    ``asked``: resources.mode. ``measured``: the micro-runs of the step's splits, none before the first. ``nodes``: the
    resources of each. ``threads``: of one worker. ``scales``: an autoscaler may bring nodes that only decode.
    """
    if sum(int(node.get("CPU", 0)) for node in nodes) == 0 and not scales:
        return False, "no node has a CPU for a task"  # one could never be placed
    if asked != "auto":
        return asked == "spread", f"resources.mode is {asked}"
    if not any(node.get("GPU", 0) for node in nodes):
        return False, "no node has a GPU"
    if not any(node.get("CPU", 0) and not node.get("GPU", 0) for node in nodes) and not scales:
        return False, "every CPU is beside a GPU"
    if not measured:
        return False, "nothing is measured yet"
    decode = max(one.decode_s / max(1, threads) - one.compute_s for one in measured)
    worst = next(one for one in measured if one.decode_s / max(1, threads) - one.compute_s == decode)
    told = (
        f"a row takes {1e3 * worst.decode_s / max(1, threads):.3g} ms to decode on {threads} threads, "
        f"{1e3 * worst.compute_s:.3g} ms to compute"
    )
    return decode > 0, told


class Decoding:
    """``mode`` for workers that start now, "inline" or "spread"; those that are there keep to what it was then."""

    def __init__(self, asked: str, tell: Callable[..., None]) -> None:
        """``asked``: resources.mode. ``tell``: an event, when the mode changes."""
        self._asked, self._tell = asked, tell
        self.mode = ""

    def choose(self, step: str, measured: Sequence[Measured], threads: int, scales: bool) -> None:
        """By the cluster as it is now; see ``spreads``."""
        spread, why = spreads(self._asked, measured, list(cluster.alive_nodes().values()), threads, scales)
        mode = "spread" if spread else "inline"
        if mode != self.mode:
            self._tell("mode", step=step, mode=mode, why=why)
        self.mode = mode
