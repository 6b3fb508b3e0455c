"""Random numbers of attribution methods: from (seed, key, method) alone, so an image's never depend on its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def generators(seed: int, keys: Sequence[str], method: str, rows: int) -> list[np.random.Generator]:
    """One generator per image (Philox, keyed by a 128-bit hash). ValueError where an image has no key."""
    if len(keys) != rows:
        raise ValueError(
            f"{method} draws from (seed, key): {len(keys)} keys for {rows} images; give the query its keys"
        )
    return [np.random.Generator(np.random.Philox(key=_hash(str(int(seed)), key, method))) for key in keys]


def _hash(*fields: str) -> int:
    digest = hashlib.blake2b(digest_size=16, person=b"raylens maps")
    for field in fields:
        raw = field.encode()
        digest.update(len(raw).to_bytes(8, "little"))  # lengths keep ("ab", "c") apart from ("a", "bc")
        digest.update(raw)
    return int.from_bytes(digest.digest(), "little")
