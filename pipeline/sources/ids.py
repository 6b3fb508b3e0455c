"""Ids of annotation files: which values are ids, and where each stands among the known ones."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np

_IDS = 2**63


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is an integer of 64 bits; JSON's true is an int to isinstance, and is none."""
    return type(value) is int and -_IDS <= value < _IDS


def find(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position of each asked id among the known ones (0 where there is none), and whether it is there."""
    if len(known) == 0:
        return np.zeros(len(asked), np.int64), np.zeros(len(asked), bool)
    order = np.argsort(known, kind="stable")
    at = np.minimum(np.searchsorted(known[order], asked), len(known) - 1)
    return order[at], known[order[at]] == asked
