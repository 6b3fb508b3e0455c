"""The filters stage: for every image the rows and columns of an image-to-image network's linear system at it.

A row is what an output reads (its receptive filter), a column what an input writes (its projective filter). Where the
receptive field is bounded all of them are found by combs and kept as patches; else those of a grid, as whole images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stages.linear.comb import Comb, Teeth
from stages.linear.filter_sizes import FilterSizes, Places, filter_sizes, spread
from stages.linear.image_input import ImageInput
from stages.linear.scope import LinearScope, Masks, freeze, impulses
from stages.linear.stream import Frozen
from stages.schema import column

Precision = Literal["float32", "float64"]
_ROW, _COLUMN = "row", "column"


@dataclass(frozen=True)
class FiltersConfig:
    """``places``: all, a grid of ``grid`` x ``grid``, or (auto) all where the receptive field is bounded.

    ``taylor``: sigmoid and tanh by their tangent, instead of h(x0) / x0. ``batch``: combs or impulses in one pass;
    0: by the device. ``precision`` is what is computed in; float32 is kept.
    """

    image: ImageInput = field(default_factory=ImageInput)
    places: Places = "auto"
    grid: int = 8
    taylor: bool = False
    precision: Precision = "float32"
    masks: Masks = "auto"
    batch: int = 0

    def __post_init__(self) -> None:
        if self.places not in ("auto", "all", "grid") or self.grid < 1 or self.batch < 0:
            raise ValueError(f"places are auto, all or grid, grid from 1 on, batch from 0 on; got {self}")


def _filters(name: str, of: str, corner: str, patch: str) -> list[pa.Field]:
    return [
        column(f"{name}_places", pa.list_(pa.int32()), f"{of}s that are kept, sorted", shape="[n, (channel, y, x)]"),
        column(f"{name}_corner", pa.list_(pa.int32()), f"where its patch begins in the {corner}; may lie outside",
               shape="[n, (top, left)]", unit="pixels"),
        column(f"{name}_patch_shape", pa.list_(pa.int32()), "one patch", shape=f"[{patch}, ph, pw]"),
        column(f"{name}_values", pa.list_(pa.float32()), f"patches of the {name}s; 0 outside the image",
               shape=f"[n, {patch}, ph, pw]"),
    ]  # fmt: skip


SCHEMA = pa.schema(
    [
        column("input", pa.list_(pa.float32()), "the image as the network got it", shape="[C, H, W]"),
        column("input_shape", pa.list_(pa.int32()), "C, H, W"),
        column("output", pa.list_(pa.float32()), "what the network makes of it", shape="[K, h, w]"),
        column("output_shape", pa.list_(pa.int32()), "K, h, w"),
        column("residual", pa.list_(pa.float32()), "the frozen network's output for the zero input", shape="[K, h, w]"),
        *_filters(_ROW, "output", "input", "C"),
        *_filters(_COLUMN, "input", "output", "K"),
        column("bounded", pa.bool_(), "all places are kept; else a grid of them, each with a whole image"),
    ]
)


class FiltersStage:
    """Measuring stage. Input: "network", an nn.Module in eval mode on the device; it is not changed.

    ``sizes`` says what a row will hold, where it is known already.
    """

    version = 2
    wants: ClassVar[Literal["pixels"]] = "pixels"
    schema = SCHEMA

    def __init__(self, config: FiltersConfig, sizes: FilterSizes | None = None) -> None:
        self.config, self.sizes = config, sizes
        self.frozen: Frozen | None = None

    def prepare(self, image: NDArray[np.uint8], row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels [3, h, w]."""
        return {"pixels": self.config.image.pixels(image)}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        """ValueError names a call that cannot be frozen."""
        self.device = device
        self.frozen = frozen_network(inputs["network"], self.config, device)
        self.sizes = filter_sizes(self.frozen, self.config.places, self.config.grid)
        self._batch = self.config.batch or (64 if device.type == "cuda" else 16)

    def micro_batch(self, device: torch.device) -> int:
        """Images share nothing: each has a system of its own."""
        return 1

    def cost(self) -> dict[str, float]:
        frozen, sizes = self._ready()
        whole = sum(call.flops for call in frozen.graph.calls.values())
        forwards = float(sizes.passes + 2)
        return {"forwards_per_row": forwards, "flops_per_row": forwards * whole, "networks_per_row": 0.0}

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        frozen, _ = self._ready()
        found = []
        for _, x0 in inputs_of(batch, self.config, self.device):
            with LinearScope(frozen, x0, masks=self.config.masks) as scope:
                found.append(self._row(scope))
        return found

    def _row(self, scope: LinearScope) -> dict[str, Any]:
        _, sizes = self._ready()
        if not bool(torch.isfinite(scope.output).all()):
            raise ValueError("the network's output for this image is not finite")
        row: dict[str, Any] = {
            "input": kept(scope.x0),
            "input_shape": np.array(sizes.input, np.int32),
            "output": kept(scope.output),
            "output_shape": np.array(sizes.output, np.int32),
            "residual": kept(scope.residual()),
            "bounded": sizes.bounded,
        }
        if sizes.whole:
            return row | self._by_impulses(scope)
        comb = Comb(scope, batch=self._batch)
        row |= _patches(_ROW, comb.rows(), sizes.output, sizes.row_patch)
        return row | _patches(_COLUMN, comb.columns(), sizes.input, sizes.column_patch)

    def _by_impulses(self, scope: LinearScope) -> dict[str, np.ndarray]:
        """Whole images for all places or a grid of them, a batch of impulses at a time."""
        _, sizes = self._ready()
        found: dict[str, np.ndarray] = {}
        for name, answer, ask in ((_ROW, scope.adjoint, scope.output), (_COLUMN, scope.forward, scope.x0)):
            count, height, width = ask.shape[1:]
            grid = self.config.grid if not sizes.bounded else max(height, width)
            at = [(c, y, x) for c in range(count) for y in spread(height, grid) for x in spread(width, grid)]
            read = sizes.input if name == _ROW else sizes.output
            values = np.empty((len(at), *read), np.float32)
            for start in range(0, len(at), self._batch):
                part = at[start : start + self._batch]
                values[start : start + len(part)] = kept(answer(impulses(part, ask)))
            found |= _columns(name, np.array(at, np.int32), np.zeros((len(at), 2), np.int32), values)
        return found

    def _ready(self) -> tuple[Frozen, FilterSizes]:
        if self.frozen is None or self.sizes is None:
            raise RuntimeError("the stage has no network yet: call setup() first")
        return self.frozen, self.sizes


class Asked(Protocol):
    """What a frozen network depends on, of a stage's config."""

    @property
    def image(self) -> ImageInput: ...

    @property
    def taylor(self) -> bool: ...

    @property
    def precision(self) -> Precision: ...


def frozen_network(network: torch.nn.Module, asked: Asked, device: torch.device | str) -> Frozen:
    """``network``, a copy of it in another precision, traced for images as asked. ValueError: what cannot be frozen."""
    dtype = getattr(torch, asked.precision)
    if dtype != torch.float32:
        network = copy.deepcopy(network).to(dtype)
    return freeze(network, torch.zeros(1, *asked.image.shape, device=device, dtype=dtype), taylor=asked.taylor)


def inputs_of(batch: Mapping[str, Any], asked: Asked, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """(place in the batch, what the network gets: (1, C, H, W)) of the valid images."""
    pixels = torch.as_tensor(np.asarray(batch["pixels"]))
    for i in np.flatnonzero(batch["valid"]):
        yield int(i), asked.image.tensor(pixels[i : i + 1].to(device)).to(getattr(torch, asked.precision))


def kept(values: torch.Tensor) -> np.ndarray:
    """float32, on the CPU."""
    found: np.ndarray = values.detach().to("cpu", torch.float32).numpy()
    return found


def _patches(name: str, teeth: Iterator[Teeth], ask: tuple[int, ...], patch: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The patches of all combs in the order of the places, (channel, y, x)."""
    count, height, width = ask
    values = np.empty((count * height * width, *patch), np.float32)
    corner = np.empty((count * height * width, 2), np.int32)
    for t in teeth:
        at = (t.channel * height + np.array(t.ys)[:, None]) * width + np.array(t.xs)
        values[at] = kept(t.values)
        corner[at, 0], corner[at, 1] = np.array(t.top)[:, None], np.array(t.left)
    places = np.indices(ask, np.int32).reshape(3, -1).T
    return _columns(name, places, corner, values)


def _columns(name: str, places: np.ndarray, corner: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    shape = np.array(values.shape[1:], np.int32)
    return {
        f"{name}_places": places,
        f"{name}_corner": corner,
        f"{name}_patch_shape": shape,
        f"{name}_values": values,
    }
