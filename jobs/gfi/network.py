"""The network of a guided feature inversion job: its frame, its classes, and the two layers that are found in it."""

from __future__ import annotations

import dataclasses

import torch

from jobs.gfi.config import GfiConfig
from pipeline.errors import UsageError
from pipeline.models import load
from stages.gfi.config import GfiConfig as StageConfig
from stages.gfi.layers import find_layers
from stages.preprocess import Preprocess
from stages.tracing import Graph


@dataclasses.dataclass(frozen=True)
class Found:
    """The network as the config names it: how images are framed, its classes, and the two layers that were found."""

    stage: StageConfig
    classes: int
    names: list[str] | None
    inversion_layer: str
    mask_layer: str


def inspect(config: GfiConfig) -> Found:
    """Loads the network once; UsageError where a layer or a class is none of it."""
    network = load(config.model)
    stage = config.stage_config(Preprocess(**network.preprocess))
    try:
        with torch.no_grad():
            graph = Graph(network.module, torch.zeros(1, 3, *stage.preprocess.size))
            layers = find_layers(graph, stage.inversion_layer, stage.mask_layer, one=stage.preset == "authors")
    except (LookupError, ValueError) as error:
        raise UsageError(str(error.args[0]), where=f"layers of {config.model.name}") from error
    assert network.num_classes is not None
    beyond = [t for t in stage.targets if isinstance(t, int) and t >= network.num_classes]
    if beyond:
        raise UsageError(
            f"target {beyond[0]} is no class of {config.model.name}",
            where="gfi.targets",
            cure=f"its classes are 0 to {network.num_classes - 1}",
        )
    return Found(stage, network.num_classes, network.classes, *layers)
