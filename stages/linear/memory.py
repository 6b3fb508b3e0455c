"""What it takes to keep one image's frozen decisions, and what it takes not to: bytes for each network and shape."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from stages.linear.scope import freeze
from stages.linear.stream import Frozen


@dataclass(frozen=True)
class FrozenBytes:
    """Of one image, beside the weights and the probes.

    ``activations``: every call's value, as numbers: what automatic differentiation keeps, and what the paper's Table 1
    counts. ``keep``: masks, indices and statistics alone, kept for all further probes. ``stream``: the most that lives
    at one time while the image runs one call ahead of the probes, and nothing is kept. Rows need more than columns:
    either way each probe's own ``activations`` live until it has come back.
    """

    activations: int
    keep: int
    stream: int


def frozen_bytes(frozen: Frozen, itemsize: int = 4) -> FrozenBytes:
    """For the shape that ``frozen`` was traced with, with numbers of ``itemsize`` bytes."""
    sizes = {node: frozen.numbers(node) * itemsize for node in frozen.nodes}
    living = {frozen.graph.input: frozen.numbers(frozen.graph.input) * itemsize}
    most = sum(living.values())
    for i, node in enumerate(frozen.nodes):
        living[node] = sizes[node]
        most = max(most, sum(living.values()) + frozen.kept_by(node, itemsize))
        frozen.release(i, living)
    return FrozenBytes(frozen.activation_bytes(itemsize), frozen.kept_bytes(itemsize), most)


def bytes_of(network: nn.Module, shape: tuple[int, ...]) -> FrozenBytes:
    """Of ``network`` for one image of ``shape`` (C, H, W), in the network's own precision."""
    weight = next(network.parameters())
    return frozen_bytes(freeze(network, weight.new_zeros(1, *shape)), weight.element_size())
