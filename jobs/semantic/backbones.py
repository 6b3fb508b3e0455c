"""Can each backbone be cut at its features? Asked before anything is trained, not when its own turn comes."""

from __future__ import annotations

from functools import lru_cache

import torch

from pipeline.errors import UsageError
from pipeline.models import ModelSpec, load, preprocess_for
from stages.semantic.features import backbone_features


def require_features(spec: ModelSpec) -> None:
    """UsageError naming the network where it has no features to read classes from.

    Only its layers matter, so its weights are neither read nor downloaded.
    """
    bare = spec.model_copy(update={"weights": None, "seed": 0})
    if reason := _refusal(bare.model_dump_json(), tuple(preprocess_for(spec)["size"])):
        raise UsageError(
            f"networks: {spec.name} cannot be trained on two levels: {reason}",
            where="config",
            cure="take another network, or write its forward so that torch.fx can trace it",
        )


@lru_cache(maxsize=16)
def _refusal(described: str, size: tuple[int, int]) -> str:
    spec = ModelSpec.model_validate_json(described)
    module = load(spec, probe=False).module
    try:
        with torch.no_grad():
            backbone_features(module, torch.zeros(1, 3, *size))
    except ValueError as error:
        return str(error)
    return ""
