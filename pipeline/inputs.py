"""Heavy things a stage is handed on each worker, with the digest that stands for them in its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import lru_cache
from typing import Any

import torch

from pipeline.models import ModelSpec, load, weights_digest


@dataclasses.dataclass(frozen=True)
class NetworkInput:
    """A network in eval mode, float32, on the worker's device. Where its weights lie is not part of what it is."""

    spec: ModelSpec

    def digest(self) -> str:
        described = {
            "name": self.spec.name,
            "arguments": self.spec.arguments,
            "num_classes": self.spec.num_classes,
            "weights": _weights_digest(self.spec.model_dump_json()),
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def load(self, device: Any) -> torch.nn.Module:
        return load(self.spec, probe=False).module.to(device)


@lru_cache(maxsize=8)
def _weights_digest(spec: str) -> str:
    # Several steps share one network, and hashing half a gigabyte takes seconds.
    return weights_digest(ModelSpec.model_validate_json(spec))
