"""The last layer of a classifier, trained anew for other classes on features that are computed once.

The classes are independent of each other (binary cross-entropy, several to an image), as in the VOC classifier of
guided feature inversion. All other layers stay as they are, in eval mode, so the features of an image are the same in
every epoch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from stages.preprocess import Preprocess
from stages.semantic.features import Features, backbone_features
from stages.tracing import Graph
from stages.training import Progress, TensorData, TrainingConfig, fit
from stages.training_ahead import ahead
from stages.training_data import Data
from stages.training_state import Checkpoints

#: The paper's: Adam at 1e-4, 64 images a batch. AdamW without decay is Adam; how long it trained is not said.
RECIPE = TrainingConfig(epochs=20, batch=64, optimizer="adamw", lr=1e-4, weight_decay=0.0, schedule="constant")


@dataclass(frozen=True)
class ClassifierTraining:
    """All that the result depends on, beside the data and the network. ``classes`` is their number."""

    classes: int
    training: TrainingConfig = RECIPE
    preprocess: Preprocess = field(default_factory=Preprocess)
    evaluate_batch: int = field(default=32, metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}: there is at least one")


def train_last_layer(
    network: nn.Module,
    data: Mapping[str, Data],
    config: ClassifierTraining,
    checkpoints: Checkpoints | None = None,
    *,
    device: torch.device | str = "cpu",
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[Progress], None] | None = None,
    within: Callable[[float], None] | None = None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Trains on ``data["train"]`` (``image`` uint8, ``labels`` multi-hot); watches ``data["tune"]`` where there is one.

    Returns the whole network's weights with the new layer in the old one's place (``network.safetensors``), and facts:
    history, average precision of each class on the watched split, rows, the layer. ValueError for a network whose
    classes are not those of a last linear layer.
    """
    height, width = config.preprocess.size
    example = torch.zeros(1, 3, height, width)
    network = copy.deepcopy(network).cpu().eval()
    path = last_linear(network, example)
    features = backbone_features(network, example)
    module = features.module.to(device).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows = {split: _features(module, features, found, config, torch.device(device)) for split, found in data.items()}
    old = network.get_submodule(path)
    assert isinstance(old, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        head = nn.Linear(old.in_features, config.classes, bias=old.bias is not None)
    tune = rows.get("tune")
    history = fit(
        wrap(head) if wrap is not None else head.to(device),
        rows["train"],
        config.training,
        checkpoints,
        loss=_loss,
        evaluate=None if tune is None else lambda model: {"mean_ap": mean_precision(_precisions(model, tune, device))},
        progress=progress,
        within=within,
        device=device,
        rank=rank,
        world=world,
    )
    found = None if tune is None else [None if math.isnan(p) else p for p in _precisions(head, tune, device)]
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, head.cpu())
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    facts = {
        "layer": path,
        "preprocess": asdict(config.preprocess),
        "history": history,
        "average_precision": found,
        "rows": {split: len(table) for split, table in rows.items()},
    }
    return {"network.safetensors": safetensors.torch.save(state)}, facts


def last_linear(network: nn.Module, example: Tensor) -> str:
    """Path of the linear layer whose outputs are the classes. ValueError where there is none."""
    from stages.semantic.features import last_linear

    found = last_linear(Graph(network, example))
    if found is None:
        raise ValueError(
            f"the classes of {type(network).__name__} are not those of a last linear layer, so there is none to train "
            "anew: take VGG, ResNet, AlexNet, DenseNet or MobileNet"
        )
    return str(found.target)


def average_precision(scores: NDArray[Any], truth: NDArray[Any]) -> float:
    """Mean of the precision at each true image, best score first; equal scores share a place. NaN without any."""
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], truth[order].astype(bool)
    if not hit.any():
        return math.nan
    # Where scores are equal, all of them are taken at once: the order of rows must not decide.
    last = np.searchsorted(-ranked, -ranked, side="right")
    hits = np.cumsum(hit)[last - 1]
    return float((hits / last)[hit].mean())


def mean_precision(precisions: list[float]) -> float:
    """Over the classes that the images have."""
    known = [p for p in precisions if not math.isnan(p)]
    return sum(known) / len(known) if known else 0.0


def _loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logits = model(batch["features"])
    return binary_cross_entropy_with_logits(logits, batch["labels"].to(logits.dtype))


@torch.no_grad()
def _precisions(head: nn.Module, rows: TensorData, device: torch.device | str) -> list[float]:
    scores = head(rows.tensors["features"].to(device)).cpu().numpy()
    truth = rows.tensors["labels"].numpy()
    return [average_precision(scores[:, c], truth[:, c]) for c in range(truth.shape[1])]


@torch.no_grad()
def _features(
    module: nn.Module, features: Features, data: Data, config: ClassifierTraining, device: torch.device
) -> TensorData:
    size = config.evaluate_batch
    slices = [np.arange(at, min(at + size, len(data))) for at in range(0, len(data), size)]
    found, truth = torch.empty(len(data), features.width), []
    keys: list[str] = []
    with ahead(data.batch, slices) as batches:
        for rows, batch in zip(slices, batches, strict=True):
            pixels = config.preprocess.normalise(batch["image"].to(device))
            seen = module(pixels.contiguous(memory_format=torch.channels_last))
            found[int(rows[0]) : int(rows[-1]) + 1] = seen.float().cpu()
            truth.append(batch["labels"])
            keys += data.keys(rows)
    return TensorData(keys, features=found, labels=torch.cat(truth))
