"""What the explorer's page loads: small scripts that each hand one value to ``raylens(name, value)``.

A page opened from disk may not fetch, but it may load scripts. Numbers travel as base64 of little-endian float32, the
stored bytes themselves. Patches of neighbouring pixels lie in one chunk: the pointer finds there most of what it asks.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.explorer.rows import Filters, Patches, Triplets, peak

CHUNK = 96 * 1024  # bytes of float32: read, decoded and there in a few milliseconds
_LIMIT = 2**15 - 1  # places are int16


@dataclass(frozen=True)
class Tiling:
    """Patches in the order in which they are stored: chunk i holds those from ``starts[i]`` on."""

    order: np.ndarray  # (n) indices of places
    starts: np.ndarray  # (chunks)

    def parts(self) -> Iterator[np.ndarray]:
        """The indices of each chunk's places."""
        if len(self.order):
            yield from np.split(self.order, self.starts[1:])


def tile(places: np.ndarray, patch_bytes: int, chunk: int = CHUNK) -> Tiling:
    """Square tiles of neighbouring places (n, 3: channel, y, x), one channel each, of about ``chunk`` bytes."""
    side = max(1, math.isqrt(chunk // max(1, patch_bytes)))
    channel, y, x = places.T
    tiles = np.stack([channel, _rank(y) // side, _rank(x) // side])
    order = np.lexsort((x, y, *tiles[::-1]))
    changed = np.any(np.diff(tiles[:, order], axis=1), axis=0)
    starts = np.concatenate([[0], np.flatnonzero(changed) + 1]) if len(order) else np.zeros(0, int)
    return Tiling(order, starts)


def filter_scripts(filters: Filters, folder: str) -> Iterator[tuple[str, bytes]]:
    """(name, script) of everything the page may ask of one image and network: the picture, its rows, its columns."""
    picture: dict[str, Any] = {name: text(getattr(filters, name)) for name in ("input", "output", "residual")}
    for kind, patches in (("rows", filters.rows), ("columns", filters.columns)):
        tiling = tile(patches.places, patches.values[0].nbytes if len(patches.values) else 0)
        picture[kind] = {
            "places": _places(patches, tiling),
            "starts": tiling.starts.tolist(),
            "patch": list(patches.values.shape[1:]),
        }
        for i, part in enumerate(tiling.parts()):
            name = f"{folder}/{kind}-{i}"
            yield name, script(name, text(patches.values[part]))
    yield f"{folder}/picture", script(f"{folder}/picture", picture)


def triplet_scripts(triplets: Triplets, folder: str) -> Iterator[tuple[str, bytes]]:
    """(name, script) of each singular pair: the eigen-input and the eigen-output."""
    for i, pair in enumerate(zip(triplets.inputs, triplets.outputs, strict=True)):
        name = f"{folder}/pair-{i}"
        yield name, script(name, {"input": text(pair[0]), "output": text(pair[1])})


def filter_facts(filters: Filters) -> dict[str, Any]:
    """What the page's index says of one image and network."""
    shown = display_range(filters.input)
    return {
        "input": list(filters.input.shape),
        "output": list(filters.output.shape),
        "bounded": filters.bounded,
        "patch": {"rows": list(filters.rows.values.shape[2:]), "columns": list(filters.columns.values.shape[2:])},
        "shown": {"input": shown, "output": display_range(filters.output, shown)},
        "peak": max(filters.rows.peak, filters.columns.peak),
        "residual": peak(filters.residual),
    }


def triplet_facts(triplets: Triplets) -> dict[str, Any]:
    """What the page's index says of the singular values of one image and network."""
    return {
        "input": list(triplets.inputs.shape[1:]),
        "output": list(triplets.outputs.shape[1:]),
        "sigma": triplets.sigma.tolist(),
        "certificate": triplets.certificate.tolist(),
        "passes": triplets.passes,
        "converged": triplets.converged,
    }


def script(name: str, value: Any) -> bytes:
    """A script that hands the value over. ASCII alone: no file name of a user can end the script or its lines."""
    return f"raylens({json.dumps(name)}, {json.dumps(value, separators=(',', ':'))});\n".encode("ascii")


def text(values: np.ndarray) -> str:
    """Base64 of the values as little-endian float32, bit for bit."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def display_range(values: np.ndarray, like: list[float] | None = None) -> list[float]:
    """(black, white) of a picture: the usual range that holds it, ``like`` where most lies within it, else its own."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [0.0, 1.0]
    low, high = (float(v) for v in np.percentile(finite, [1, 99]))
    usual = [like] if like else [[0.0, 1.0], [-1.0, 1.0], *([[0.0, 255.0]] if high > 16 else [])]
    for black, white in usual:
        slack = (white - black) / 2 if like else 0.01  # an output may overshoot, an input does not
        flat = like is not None and high - low < (white - black) / 8
        if low >= black - slack and high <= white + slack and not flat:
            return [black, white]
    low, high = float(finite.min()), float(finite.max())
    return [low, high] if high > low else [low - 0.5, low + 0.5]


def thumbnail(values: np.ndarray, most: int = 64) -> dict[str, Any]:
    """A small picture (C, H, W) for the choice of images: 8-bit RGB, every n-th pixel."""
    black, white = display_range(values)
    colours = values if values.shape[0] == 3 else np.repeat(values[:1], 3, axis=0)
    step = max(1, -(-max(colours.shape[1:]) // most))
    small = np.nan_to_num((colours[:, ::step, ::step] - black) / (white - black))
    pixels = np.round(255 * np.clip(small, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return {"width": pixels.shape[1], "height": pixels.shape[0], "rgb": base64.b64encode(pixels.tobytes()).decode()}


def _places(patches: Patches, tiling: Tiling) -> str:
    """(n, 5) int16: channel, y, x, top, left in the order of the chunks."""
    table = np.concatenate([patches.places, patches.corners], axis=1)[tiling.order]
    if table.size and np.abs(table).max() > _LIMIT:
        raise ValueError(f"the page shows pictures of up to {_LIMIT} pixels a side")
    return base64.b64encode(table.astype("<i2").tobytes()).decode("ascii")


def _rank(values: np.ndarray) -> np.ndarray:
    """The place of each value among the distinct ones."""
    return np.unique(values, return_inverse=True)[1].reshape(values.shape)
