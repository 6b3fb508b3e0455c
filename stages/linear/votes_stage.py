"""The votes stage: which class every pixel of an image speaks for, clean and attacked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from stages.linear.classifier import VIEWS, Classifier, View, prefix
from stages.linear.votes import Bias, Discussion, Scaling
from stages.preprocess import Preprocess
from stages.schema import column

_MOST = np.iinfo(np.int16).max


@dataclass(frozen=True)
class VotesConfig:
    """``classes``: how many classes stand for election, those with the highest scores; 0: all of them.

    ``bias`` and ``scaling`` are readings of the paper's eq. 18: see `stages.linear.votes.Discussion`. ``top``: how many
    of the classes with most votes are told by name and share.
    """

    view: View = field(default_factory=View)
    classes: int = 0
    bias: Bias = "class"
    scaling: Scaling = "total"
    top: int = 5
    chunk: int = 16  # classes in one pass: memory against speed
    batch: int = field(default=0, metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        if self.classes < 0 or self.top < 1 or self.chunk < 1:
            raise ValueError(f"classes is {self.classes}, top {self.top}, chunk {self.chunk}: 0, 1 and 1 at least")

    @property
    def preprocess(self) -> Preprocess:
        return self.view.preprocess


class VotesStage:
    """Measuring stage. Input: "network", an nn.Module in eval mode on the device.

    An image is discussed alone, so it does not know its batch.
    """

    version = 3
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: VotesConfig) -> None:
        self.config = config
        self.classifier: Classifier | None = None

    @property
    def schema(self) -> pa.Schema:
        ints, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
        fields = [
            column("label", pa.int32(), "true class id; null if unknown"),
            column("size", ints, "height and width of the input", unit="pixels"),
        ]
        for view in self.config.view.names:
            of, start = " of the attacked image" if view == VIEWS[1] else "", prefix(view)
            fields += [
                column(f"{start}predicted", pa.int32(), f"class the network puts first{of}"),
                column(f"{start}probability", pa.float64(), f"its softmax{of}"),
                column(f"{start}votes", pa.list_(pa.int16()), f"the class each pixel votes for{of}", shape="[h, w]"),
                column(f"{start}voted", pa.int32(), f"classes with at least one vote{of}"),
                column(f"{start}top", ints, f"classes with most votes{of}, most first", shape="[top]"),
                column(f"{start}top_share", floats, f"their share of the pixels{of}", shape="[top]"),
                column(f"{start}top_score", floats, f"their logits{of}", shape="[top]"),
                column(f"{start}predicted_share", pa.float64(), f"share of pixels for the predicted class{of}"),
                column(f"{start}unsteady", pa.float64(), f"share of pixels whose class was scaled by < 0 or > 2{of}"),
                column(f"{start}label_share", pa.float64(), f"share of pixels for the label{of}; null without one"),
            ]
        return pa.schema(fields)

    def prepare(self, image: np.ndarray, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels uint8 [3, h, w]."""
        return {"pixels": self.config.preprocess.pixels(image)}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        self.classifier = Classifier(inputs["network"], self.config.view, device)
        if self.classifier.classes > _MOST:
            raise ValueError(f"votes are kept as 16-bit class ids: {self.classifier.classes} classes are too many")

    def micro_batch(self, device: torch.device) -> int:
        return self.config.batch or 4

    def cost(self) -> dict[str, float]:
        """Per row, in whole networks and FLOP: each class is taken forward once and back twice."""
        classifier = self._ready()
        classes = min(self.config.classes or classifier.classes, classifier.classes)
        views = len(self.config.view.names)
        forwards = views * (1 + 3.0 * classes) + 2 * (views - 1)
        return {
            "forwards_per_row": forwards,
            "flops_per_row": forwards * classifier.operations,
            "networks_per_row": 0.0,
        }

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        classifier = self._ready()
        x = classifier.images(batch["pixels"])
        found = []
        for i, row in enumerate(batch["rows"]):
            if not batch["valid"][i]:
                continue
            label = (row or {}).get("label")
            mine: dict[str, Any] = {"label": label, "size": list(x.shape[2:])}
            try:
                image = x[i : i + 1]
                mine |= self._discussed(image, label, "")
                if self.config.view.attack:
                    against = torch.tensor([mine["predicted"]], device=image.device)
                    mine |= self._discussed(classifier.attacked(image, [row], against), label, prefix(VIEWS[1]))
            except ValueError as error:  # its numbers are not finite; the others' are
                mine = {"label": label, "status": "failed", "error": f"{type(error).__name__}: {error}"}
            found.append(mine)
        return found

    def _ready(self) -> Classifier:
        if self.classifier is None:
            raise RuntimeError("the stage has no network yet: call setup() first")
        return self.classifier

    def _discussed(self, image: torch.Tensor, label: int | None, start: str) -> dict[str, Any]:
        config, classifier = self.config, self._ready()
        talk = Discussion(classifier.contributing, image, bias=config.bias, scaling=config.scaling, chunk=config.chunk)
        if not bool(torch.isfinite(talk.scores).all()):
            raise ValueError("the network's answer is not finite: its weights or this image hold NaN or infinity")
        count = min(config.classes or classifier.classes, classifier.classes)
        running = range(classifier.classes) if count == classifier.classes else _first(talk.scores, count)
        found = talk.votes(running)
        votes = found.label.cpu().numpy()
        counts = np.bincount(votes.ravel(), minlength=classifier.classes)
        top = np.argsort(-counts, kind="stable")[: min(config.top, classifier.classes)]
        share, scores = counts / votes.size, talk.scores.double().cpu()
        predicted = int(scores.argmax())
        known = label is not None and 0 <= label < classifier.classes
        return {
            f"{start}predicted": predicted,
            f"{start}probability": float(scores.softmax(dim=0)[predicted]),
            f"{start}votes": votes.astype(np.int16),
            f"{start}voted": int((counts > 0).sum()),
            f"{start}top": top.astype(np.int32),
            f"{start}top_share": share[top].astype(np.float32),
            f"{start}top_score": scores.numpy()[top].astype(np.float32),
            f"{start}predicted_share": float(share[predicted]),
            f"{start}unsteady": found.unsteady,
            f"{start}label_share": float(share[label]) if known else None,
        }


def _first(scores: torch.Tensor, count: int) -> list[int]:
    """The classes with the highest scores; ties in the order of the classes."""
    found: list[int] = torch.sort(scores, descending=True, stable=True).indices[:count].tolist()
    return found
