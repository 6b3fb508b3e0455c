"""Which channels stay open: CHIP's random gates as an integer recipe that any machine repeats bit for bit.

The gates of one image and layer are a function of a 64-bit seed alone (CHIP's sampling: m uniform in {1..K}, then m
channels at random). They are never stored: the solve draws them again and compares a checksum.

Recipe, for gate ``n`` and channel ``k`` of a seed:

1. Words come from Philox4x32-10 (Salmon et al., SC 2011) with key = (seed mod 2^32, seed div 2^32).
2. Channel ``k`` gets word ``k mod 4`` of the counter (k div 4, n, 0, 0).
3. ``m`` = 1 + (u * K) div 2^32 with u the first word of the counter (0, n, 1, 0).
4. The gate opens the ``m`` channels with the smallest words; equal words are taken in the order of their index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

MAX_CHANNELS = 1 << 20
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def gate_seeds(run_seed: int, split: str, keys: Sequence[str], layer: str, *, shared: bool = False) -> np.ndarray:
    """One seed per key, uint64 [B], from (run seed, split, key, layer) and nothing else.

    ``layer`` is the name as asked in the config. With ``shared`` every image has the same gates: neither the split nor
    the key enters, so the seed is one for the whole run and layer.
    """
    seeds = np.empty(len(keys), np.uint64)
    if shared:
        seeds[:] = _seed("raylens gates, shared", str(int(run_seed)), layer)
        return seeds
    for i, key in enumerate(keys):
        seeds[i] = _seed("raylens gates", str(int(run_seed)), split, key, layer)
    return seeds


def _seed(*fields: str) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for field in fields:
        raw = field.encode()
        digest.update(len(raw).to_bytes(8, "little"))  # lengths keep ("ab", "c") apart from ("a", "bc")
        digest.update(raw)
    return int.from_bytes(digest.digest(), "little")


def draw_gates(seeds: np.ndarray, n: int, channels: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The gates of some seeds (uint64 [B]): bool [B, n, channels] on ``device``, True = open.

    The same bits on CPU, on a GPU and in every library version. Raises ValueError for counts out of range.
    """
    if n < 1 or not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"{n} gates of {channels} channels: draw at least 1 gate of 1 to {MAX_CHANNELS} channels")
    seeds = np.ascontiguousarray(seeds, dtype=np.uint64)
    if torch.device(device).type == "cpu":
        gates = np.empty((len(seeds), n, channels), bool)
        for i in range(len(seeds)):  # one image's words stay in the cache
            _draw_numpy(int(seeds[i]), gates[i])
        return torch.from_numpy(gates)
    return draw_gates_torch(seeds, n, channels, device)


def _draw_numpy(seed: int, gates: np.ndarray) -> None:
    """Fill bool [n, K] with the gates of one seed."""
    n, channels = gates.shape
    u64 = np.uint64
    blocks = np.arange(-(-channels // 4), dtype=u64)[None, :]
    row = np.arange(n, dtype=u64)[:, None]
    zero, one = np.zeros((1, 1), u64), np.ones((1, 1), u64)
    lanes = _philox_numpy((blocks, row, zero, zero), seed)
    words = np.empty((n, blocks.size, 4), np.uint32)
    for lane, values in enumerate(lanes):
        words[:, :, lane] = values
    words = words.reshape(n, -1)[:, :channels]
    first = _philox_numpy((zero, row, one, zero), seed)[0]
    count = (1 + ((first * u64(channels)) >> u64(32))).astype(np.int64)[:, 0]
    smallest_numpy(words, count, gates)


def smallest_numpy(words: np.ndarray, count: np.ndarray, gates: np.ndarray) -> None:
    """Mark in bool ``gates`` [n, K] the ``count`` [n] smallest words (uint32 [n, K]) of each row, ties by index.

    Sorts the bare words, and mends the rare rows where equal words straddle the border.
    """
    border = np.sort(words, axis=1)[np.arange(len(words)), count - 1]
    np.less_equal(words, border[:, None], out=gates)
    for i in np.flatnonzero(gates.sum(1) != count):
        gates[i] = False
        gates[i, np.argsort(words[i], kind="stable")[: count[i]]] = True


def _philox_numpy(counter: tuple[np.ndarray, ...], seed: int) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 of uint64 arrays that hold 32-bit values; they broadcast only as the rounds mix them."""
    u64 = np.uint64
    m0, m1, mask, half = u64(_MULTIPLIERS[0]), u64(_MULTIPLIERS[1]), u64(_MASK), u64(32)
    c0, c1, c2, c3 = counter
    for k0, k1 in _round_keys(seed):
        p0, p1 = c0 * m0, c2 * m1
        high0, high1 = p0 >> half, p1 >> half
        high0 ^= u64(k1)
        high1 ^= u64(k0)
        c0, c2 = high1 ^ c1, high0 ^ c3
        p0 &= mask
        p1 &= mask
        c1, c3 = p1, p0
    return c0, c1, c2, c3


def _round_keys(seed: int) -> list[tuple[int, int]]:
    low, high = seed & _MASK, seed >> 32
    return [((low + r * _WEYL[0]) & _MASK, (high + r * _WEYL[1]) & _MASK) for r in range(_ROUNDS)]


def draw_gates_torch(seeds: np.ndarray, n: int, channels: int, device: torch.device | str) -> torch.Tensor:
    """The same gates in int64 tensor arithmetic, all images at once: bool [B, n, channels] on ``device``."""
    keys = (
        torch.tensor([_round_keys(int(seed)) for seed in seeds], dtype=torch.int64).reshape(-1, _ROUNDS, 2).to(device)
    )
    blocks = torch.arange(-(-channels // 4), device=device)[None, None, :]
    row = torch.arange(n, device=device)[None, :, None]
    zero, one = torch.zeros_like(row[:, :1]), torch.ones_like(row[:, :1])
    words = torch.stack(torch.broadcast_tensors(*_philox_torch((blocks, row, zero, zero), keys)), dim=-1)
    words = words.reshape(len(seeds), n, -1)[..., :channels]
    first = _philox_torch((zero, row, one, zero), keys)[0]
    count = 1 + ((first * channels) >> 32)
    return smallest_torch(words, count)


def smallest_torch(words: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The same choice for int64 words [..., n, K] and counts [..., n, 1]: bool [..., n, K]."""
    ranked = words * MAX_CHANNELS + torch.arange(words.shape[-1], device=words.device)  # 32 + 20 bits: no two are equal
    border = ranked.sort(dim=-1).values.gather(-1, count.expand(*words.shape[:-1], 1) - 1)
    return ranked <= border


def _philox_torch(counter: tuple[torch.Tensor, ...], keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """int64 products wrap modulo 2^64, and the mask drops the sign that an arithmetic shift drags in."""
    c0, c1, c2, c3 = counter
    for r in range(_ROUNDS):
        k0, k1 = keys[:, r, 0, None, None], keys[:, r, 1, None, None]
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, ((p0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = p1 & _MASK, p0 & _MASK
    return c0, c1, c2, c3


def checksums(gates: torch.Tensor) -> np.ndarray:
    """A 64-bit checksum for the gates of each row, uint64 [B]: blake2b of shape and packed bits."""
    bits = np.packbits(gates.cpu().numpy(), axis=-1)
    shape = repr(tuple(gates.shape[1:])).encode()
    digests = [hashlib.blake2b(shape + row.tobytes(), digest_size=8).digest() for row in bits]
    return np.array([int.from_bytes(d, "little") for d in digests], dtype=np.uint64)
