"""Heavy things a stage is handed on each worker, with the digest that stands for them in its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from functools import lru_cache
from typing import Any

import torch

from pipeline.models import ModelSpec, load, weights_digest
from pipeline.sources.files import absolute


@dataclasses.dataclass(frozen=True)
class NetworkInput:
    """A network in eval mode, float32, on the worker's device. Where its weights lie is not part of what it is."""

    spec: ModelSpec

    def digest(self) -> str:
        described = {
            "name": self.spec.name,
            "arguments": self.spec.arguments,
            "num_classes": self.spec.num_classes,
            "weights": _weights_digest(self.spec.model_dump_json(), _state_of(self.spec.weights)),
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def load(self, device: Any) -> torch.nn.Module:
        return load(self.spec, probe=False).module.to(device)


@lru_cache(maxsize=8)
def _weights_digest(spec: str, state: tuple[int, int] | None) -> str:
    # Several steps share one network, and hashing half a gigabyte takes seconds.
    return weights_digest(ModelSpec.model_validate_json(spec))


def _state_of(weights: str | None) -> tuple[int, int] | None:
    """A local file's time and size: one that was replaced is read again."""
    try:
        found = os.stat(absolute(weights)) if weights else None
    except (OSError, ValueError):  # torchvision's names, and URLs
        return None
    return (found.st_mtime_ns, found.st_size) if found else None
