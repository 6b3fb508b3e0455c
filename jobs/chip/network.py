"""The network of a CHIP job, cut at the layers that its config names."""

from __future__ import annotations

import torch

from jobs.chip.config import ChipConfig
from pipeline.errors import UsageError
from pipeline.models import load
from stages.network import Cut, cut
from stages.preprocess import Preprocess


def network_cut(config: ChipConfig) -> tuple[Cut, int, Preprocess, list[str] | None]:
    """The network cut at the config's layers, its number of classes, preprocessing and class names."""
    network = load(config.model)
    preprocess = Preprocess(**network.preprocess)
    try:
        with torch.no_grad():
            found = cut(network.module, config.layers, torch.zeros(1, 3, *preprocess.size))
    except (LookupError, ValueError) as error:
        raise UsageError(str(error.args[0]), where=f"layers of {config.model.name}") from error
    assert network.num_classes is not None
    return found, network.num_classes, preprocess, network.classes
