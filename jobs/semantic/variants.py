"""The networks that a semantic job trains: every backbone with every loss, and its baseline."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jobs.semantic.config import SemanticConfig
from pipeline.models import ModelSpec
from stages.semantic.rules import rules_for


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network to train: a backbone and what is learnt on it."""

    network: str  # a short name, unique in the job
    spec: ModelSpec
    kind: Literal["focal", "bce", "coarse"]

    @property
    def name(self) -> str:
        return f"{self.network}_{self.kind}"

    @property
    def rules(self) -> tuple[str, ...]:
        return () if self.kind == "coarse" else rules_for(self.kind)


def variants(config: SemanticConfig) -> list[Variant]:
    """Every network with every loss, and its baseline."""
    kinds: list[Any] = [*config.losses, *(["coarse"] if config.baseline else [])]
    names: list[str] = []
    for spec in config.networks:
        short = spec.name.rpartition(":")[2]
        count = sum(name.split("-")[0] == short for name in names)
        names.append(f"{short}-{count + 1}" if count else short)
    return [Variant(name, spec, kind) for name, spec in zip(names, config.networks, strict=True) for kind in kinds]
