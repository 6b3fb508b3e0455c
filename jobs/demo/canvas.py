"""Painting with numpy alone: filled outlines, textures, and the exact polygons of a mask.

Nothing here goes through a drawing library, so a picture has the same pixels whatever is installed.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from jobs.demo.draws import Draws

FINE = 3  # subpixels per side and pixel


def fill(parts: list[list[np.ndarray]], size: int) -> np.ndarray:
    """Which subpixels lie inside closed rings, by parity (a ring within a ring is a hole), for several parts at once.

    Args:
        parts: the rings of each part, float64 [points, 2], x and y in pixels.
        size: side of the square picture in pixels.

    Returns:
        bool [parts, size * FINE, size * FINE], true where the subpixel's centre is inside.
    """
    n = size * FINE
    rings = [ring for part in parts for ring in part]
    start = np.concatenate(rings) * FINE
    stop = np.concatenate([points for ring in rings for points in (ring[1:], ring[:1])]) * FINE
    part = np.repeat(np.arange(len(parts)), [sum(len(ring) for ring in part) for part in parts])
    left, top = np.clip(np.floor(start.min(axis=0)).astype(np.int64), 0, n)
    right, bottom = np.clip(np.ceil(start.max(axis=0)).astype(np.int64), 0, n)
    inside = np.zeros((len(parts), n, n), dtype=bool)
    height, width = bottom - top, right - left
    if height <= 0 or width <= 0:
        return inside
    rise = stop[:, 1] - start[:, 1]
    slope = (stop[:, 0] - start[:, 0]) / np.where(rise == 0, 1, rise)
    centre = np.arange(top, bottom)[:, None] + 0.5
    row, edge = np.nonzero((start[:, 1] <= centre) != (stop[:, 1] <= centre))
    x = start[edge, 0] + (centre[row, 0] - start[edge, 1]) * slope[edge]
    column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64) - left
    at = (part[edge] * height + row) * (width + 1) + column
    toggles = np.bincount(at, minlength=len(parts) * height * (width + 1))
    odd = (toggles & 1).astype(bool).reshape(len(parts), height, width + 1)
    inside[:, top:bottom, left:right] = np.logical_xor.accumulate(odd, axis=2)[:, :, :-1]
    return inside


def share(inside: np.ndarray) -> np.ndarray:
    """The share of each pixel that is inside: bool [n * FINE, n * FINE] -> float64 [n, n]."""
    bits = inside.view(np.uint8)
    rows = bits[0::FINE] + bits[1::FINE] + bits[2::FINE]
    return (rows[:, 0::FINE] + rows[:, 1::FINE] + rows[:, 2::FINE]) / np.float64(FINE**2)


def smooth_noise(d: Draws, size: int, grid: int) -> np.ndarray:
    """Random values on a coarse grid, bilinearly between: float64 [size, size] in [-1, 1)."""
    values = d.array(grid + 1, grid + 1) * 2 - 1
    at = np.arange(size) * (grid / size)
    low = at.astype(np.int64)
    part = at - low
    rows = values[low] * (1 - part)[:, None] + values[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def texture(d: Draws, size: int) -> np.ndarray:
    """A pattern to shade a surface with: float64 [size, size] in about [-1, 1]."""
    kind = d.pick(["plain", "gradient", "clouds", "grain", "stripes", "checks", "dots"])
    turn, period, phase = d.uniform(0, np.pi), d.uniform(0.06, 0.2) * size, d.uniform(0, 1)
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    if kind == "gradient":
        return (along - along.mean()) / (size / 2)
    if kind == "clouds":
        return smooth_noise(d, size, d.pick([3, 5, 8]))
    if kind == "grain":
        return smooth_noise(d, size, d.pick([16, 24])) * 0.8
    if kind == "stripes":
        return np.sign((along / period + phase) % 1 - 0.5)
    if kind == "checks":
        return np.sign((along / period + phase) % 1 - 0.5) * np.sign((across / period + phase) % 1 - 0.5)
    if kind == "dots":
        near = ((along / period + phase) % 1 - 0.5) ** 2 + ((across / period + phase) % 1 - 0.5) ** 2
        return np.where(near < 0.08, 1.0, -0.25)
    return np.zeros((size, size))


def shade(colour: np.ndarray, pattern: np.ndarray, strength: float) -> np.ndarray:
    """A surface: one colour (float64 [3] in [0, 1]), lighter and darker with the pattern -> [size, size, 3]."""
    return np.clip(colour + strength * pattern[..., None], 0, 1)


def polygons(mask: np.ndarray) -> list[list[float]]:
    """COCO polygons that are exactly a mask: ``[x0, y0, x1, y1, ...]`` along pixel edges, without holes.

    Decoding them with pycocotools gives back ``mask`` (bool [height, width]) bit for bit. COCO has no holes, so a part
    with a hole is cut in two through it.
    """
    outer, holes = _outlines(mask)
    if not holes:
        return [[float(value) for corner in outline for value in corner] for outline in outer]
    column = (min(x for x, _ in holes[0]) + max(x for x, _ in holes[0])) // 2
    left, right = mask.copy(), mask.copy()
    left[:, column:] = False
    right[:, :column] = False
    return polygons(left) + polygons(right)


def _outlines(mask: np.ndarray) -> tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]]:
    """Corners of the outer outlines and of the holes, the inside always on the right hand."""
    padded = np.pad(mask, 1)
    ahead: dict[tuple[int, int], list[tuple[int, int]]] = {}
    inside = padded[1:-1, 1:-1]
    for step, neighbour, corner in (
        ((1, 0), padded[:-2, 1:-1], (0, 0)),  # along the top edge, to the right
        ((0, 1), padded[1:-1, 2:], (1, 0)),  # down the right edge
        ((-1, 0), padded[2:, 1:-1], (1, 1)),  # along the bottom edge, to the left
        ((0, -1), padded[1:-1, :-2], (0, 1)),  # up the left edge
    ):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            ahead.setdefault((x + corner[0], y + corner[1]), []).append(step)
    outer: list[list[tuple[int, int]]] = []
    holes: list[list[tuple[int, int]]] = []
    while ahead:
        at = start = next(iter(ahead))
        came, corners, area = (0, 0), [], 0
        while True:
            steps = ahead[at]
            # Where two pixels touch by a corner only, turn right: that stays with the same pixel.
            right = (-came[1], came[0])
            step = right if right in steps else steps[0]
            steps.remove(step)
            if not steps:
                del ahead[at]
            if step != came:
                corners.append(at)
            area += at[0] * step[1] - at[1] * step[0]
            at, came = (at[0] + step[0], at[1] + step[1]), step
            if at == start and (at not in ahead or (-came[1], came[0]) not in ahead[at]):
                break
        (outer if area > 0 else holes).append(corners)
    return outer, holes


def png(image: np.ndarray) -> bytes:
    """A PNG without compression: compressors differ between builds, so this is what keeps the bytes equal.

    Args:
        image: uint8 [height, width, 3].
    """

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = image.shape
    raw = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1).tobytes()
    blocks = b"".join(
        struct.pack("<BHH", at + 65535 >= len(raw), len(raw[at : at + 65535]), 65535 - len(raw[at : at + 65535]))
        + raw[at : at + 65535]
        for at in range(0, len(raw), 65535)
    )
    body = b"\x78\x01" + blocks + struct.pack(">I", zlib.adler32(raw))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
