"""What it takes to keep one image's frozen decisions, and what it takes not to: bytes for each network and shape."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Size, fx, nn

from stages.linear.scope import freeze
from stages.linear.stream import Frozen


@dataclass(frozen=True)
class FrozenBytes:
    """Of one image, beside the weights.

    ``activations``: every call's value, as numbers: what automatic differentiation keeps, and what the paper's Table 1
    counts. ``keep``: masks, indices and statistics alone, kept for all further probes. ``stream``: the most that lives
    at one time while the image runs one call ahead of the probes, and nothing is kept.
    """

    activations: int
    keep: int
    stream: int


def frozen_bytes(frozen: Frozen, itemsize: int = 4) -> FrozenBytes:
    """For the shape that ``frozen`` was traced with, with numbers of ``itemsize`` bytes."""
    sizes = {node: _numbers(frozen, node) * itemsize for node in frozen.nodes}
    living = {frozen.graph.input: _numbers(frozen, frozen.graph.input) * itemsize}
    most = sum(living.values())
    for i, node in enumerate(frozen.nodes):
        living[node] = sizes[node]
        most = max(most, sum(living.values()) + frozen.kept_by(node, itemsize))
        frozen.release(i, living)
    kept = sum(sizes[n] for n in frozen.nodes if n in frozen.rules)
    return FrozenBytes(kept, frozen.kept_bytes(itemsize), most)


def bytes_of(network: nn.Module, shape: tuple[int, ...]) -> FrozenBytes:
    """Of ``network`` for one image of ``shape`` (C, H, W), in the network's own precision."""
    weight = next(network.parameters())
    return frozen_bytes(freeze(network, weight.new_zeros(1, *shape)), weight.element_size())


def _numbers(frozen: Frozen, node: fx.Node) -> int:
    shape = frozen.graph.calls[node].shape
    return Size(shape).numel() if shape and frozen.graph.calls[node].rows else 0
