"""The network: features -> fine scores -> coarse class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from stages.semantic.features import Features, backbone_features
from stages.semantic.losses import binary, coarse_cross_entropy, focal

WEIGHTS = "network.safetensors"


@dataclass(frozen=True)
class TwoLevelConfig:
    """What the network is and what it is trained on.

    ``fine`` and ``coarse`` count the classes. ``loss`` decides what a fine score is: "focal" the softmax over the
    fine classes, "bce" each class's sigmoid. The coarse head reads the fine scores (the paper's figure) or the
    ``features``; with ``coarse_only`` it reads the features and there is no fine head (the baseline). ``freeze`` keeps
    the backbone as it is given. ``alpha`` and ``gamma`` are the focal loss's.
    """

    fine: int
    coarse: int
    loss: Literal["focal", "bce"] = "focal"
    coarse_input: Literal["fine", "features"] = "fine"
    coarse_only: bool = False
    freeze: bool = False
    alpha: float = 1.0
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.fine < 1 or self.coarse < 2:
            raise ValueError(f"{self.fine} fine and {self.coarse} coarse classes: at least 1 and 2 are needed")
        if self.loss not in ("focal", "bce") or self.coarse_input not in ("fine", "features"):
            raise ValueError(f"loss {self.loss!r} or coarse_input {self.coarse_input!r} is not one of the choices")
        if self.alpha <= 0 or self.gamma < 0:
            raise ValueError(f"alpha {self.alpha} and gamma {self.gamma}: alpha is above 0, gamma at least 0")

    @property
    def reads_fine(self) -> bool:
        """Does the coarse class follow from the fine scores?"""
        return self.coarse_input == "fine" and not self.coarse_only


class Outputs(NamedTuple):
    """Logits of a batch; ``fine`` is None without a fine head."""

    fine: Tensor | None  # [B, F]
    coarse: Tensor  # [B, C]


class Heads(nn.Module):
    """Features [B, D] -> logits of both levels."""

    def __init__(self, width: int, config: TwoLevelConfig) -> None:
        super().__init__()
        self.config = config
        self.fine = None if config.coarse_only else nn.Linear(width, config.fine)
        self.coarse = nn.Linear(config.fine if config.reads_fine else width, config.coarse)
        # A few scores near 1 among F near 0 are small numbers to a linear layer: at this scale their mean square is
        # about 1, as its start and its learning rate suppose.
        self.scale = config.fine**0.5 if config.reads_fine else 1.0

    def forward(self, features: Tensor) -> Outputs:
        if self.fine is None:
            return Outputs(None, self.coarse(features))
        fine = self.fine(features)
        return Outputs(fine, self.coarse(self.scale * self.scores(fine) if self.config.reads_fine else features))

    def scores(self, fine: Tensor) -> Tensor:
        """Fine logits -> fine scores in 0..1."""
        return fine.float().softmax(1) if self.config.loss == "focal" else fine.float().sigmoid()

    def contributions(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """What each fine class adds to the chosen coarse logit: W[c, f] * score_f, [B, F]; chosen [B] are ids.

        W is the weight of a score as it is, in 0..1.
        """
        return self.scale * self.coarse.weight[chosen] * scores


class TwoLevelNetwork(nn.Module):
    """Normalised images (B, 3, h, w) -> logits of both levels."""

    def __init__(self, features: Features, config: TwoLevelConfig) -> None:
        super().__init__()
        self.config = config
        self.described = {"layer": features.layer, "width": features.width, "why": features.why}
        self.width = features.width
        self.flops = features.flops  # per image; the heads are small beside it
        self.features = features.module
        self.features.requires_grad_(not config.freeze)
        self.heads = Heads(features.width, config)

    def forward(self, x: Tensor) -> Outputs:
        return self.heads(self.features(x))

    def train(self, mode: bool = True) -> TwoLevelNetwork:
        super().train(mode)
        if self.config.freeze:  # no dropout, and norms keep the statistics they were given
            self.features.eval()
        return self

    def to_files(self) -> dict[str, bytes]:
        """What was learnt: of a frozen backbone, nothing."""
        kept = {k: v for k, v in self.state_dict().items() if k.startswith("heads.") or not self.config.freeze}
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in kept.items()}
        return {WEIGHTS: safetensors.torch.save(tensors)}


def image_loss(outputs: Outputs, batch: Mapping[str, Tensor], config: TwoLevelConfig) -> Tensor:
    """The loss of each image: [B]. ``batch`` holds ``fine`` multi-hot [B, F] and ``coarse`` ids [B]."""
    total = coarse_cross_entropy(outputs.coarse.float(), batch["coarse"])
    if outputs.fine is None:
        return total
    logits = outputs.fine.float()
    if config.loss == "focal":
        return total + focal(logits, batch["fine"], config.alpha, config.gamma)
    return total + binary(logits, batch["fine"])


def new_network(backbone: nn.Module, config: TwoLevelConfig, size: tuple[int, int], seed: int = 0) -> TwoLevelNetwork:
    """An untrained network on ``backbone`` (eval mode; it is copied); the heads' start follows from ``seed``."""
    weight = next(backbone.parameters())
    with torch.no_grad():
        found = backbone_features(backbone, torch.zeros(1, 3, *size, device=weight.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TwoLevelNetwork(found, config).to(weight.device)


def two_level_network(
    backbone: nn.Module, facts: Mapping[str, Any], files: Mapping[str, bytes], size: tuple[int, int]
) -> TwoLevelNetwork:
    """The trained network in eval mode, from what a training returned; ``size`` (height, width) of its input.

    Raises ValueError where the files are not of this backbone and these classes.
    """
    known = {field.name for field in fields(TwoLevelConfig)}
    config = TwoLevelConfig(**{k: v for k, v in facts["model"].items() if k in known})
    network = new_network(backbone, config, size)
    tensors = safetensors.torch.load(files[WEIGHTS])
    own = network.state_dict()
    wanted = {k for k in own if k.startswith("heads.") or not config.freeze}
    wrong = sorted(k for k in wanted | tensors.keys() if k not in wanted or k not in tensors)
    wrong += sorted(k for k in wanted & tensors.keys() if own[k].shape != tensors[k].shape)
    if wrong:
        raise ValueError(f"the trained weights are of another network (they differ at {wrong[0]}): give its backbone")
    network.load_state_dict(tensors, strict=False)
    return network.requires_grad_(False).eval()
