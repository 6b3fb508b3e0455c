"""The contributions stage: what the image and every layer's bias add to a score, for each image of a dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from stages.linear.classifier import VIEWS, Classifier, View, prefix
from stages.linear.contributions import Contributions
from stages.preprocess import Preprocess
from stages.schema import column

Target = Literal["predicted", "label"] | int


@dataclass(frozen=True)
class ContributionsConfig:
    """``target``: whose score is explained: "predicted" (of the image as the network sees it, so after an attack), the
    image's "label", or a class id. ``attack``: FGSM in grey levels of 255 against the label, or against the prediction
    where there is none; the attacked image then stands beside the clean one.
    """

    target: Target = "predicted"
    view: View = field(default_factory=View)
    batch: int = field(default=0, metadata={"fingerprint": False})  # images in one pass; 0 chooses by the device

    def __post_init__(self) -> None:
        if isinstance(self.target, str) and self.target not in ("predicted", "label"):
            raise ValueError(f"target {self.target!r} is neither predicted nor label nor a class id")
        if isinstance(self.target, int) and self.target < 0:
            raise ValueError(f"target {self.target} is no class id: they count from 0")

    @property
    def preprocess(self) -> Preprocess:
        return self.view.preprocess


# Of either view, "attacked_" before the name of the second: meaning and unit.
_NUMBERS = {
    "score": "logit of the target: y",
    "probability": "softmax of the target",
    "input": "what the image contributes: F x0",
    "residual": "what all biases contribute: r, the sum of the layers' terms",
    "share": "r / y; null where y is 0",
    "magnitude": "|r| / (|F x0| + |r|), between 0 and 1",
    "gap": "y - F x0 - r: rounding",
}


class ContributionsStage:
    """Measuring stage. Input: "network", an nn.Module in eval mode on the device. One backward a batch of images."""

    version = 3
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: ContributionsConfig) -> None:
        self.config = config
        self.classifier: Classifier | None = None

    @property
    def schema(self) -> pa.Schema:
        fields = [
            column("label", pa.int32(), "true class id; null if unknown"),
            column("layer_names", pa.list_(pa.string()), "terms in the network's order", shape="[layers]"),
            column("activation_bytes", pa.int64(), "every call's value of one image", unit="bytes"),
            column("keep_bytes", pa.int64(), "its masks, indices and statistics alone", unit="bytes"),
            column("stream_bytes", pa.int64(), "the most that lives while nothing is kept", unit="bytes"),
        ]
        for view in self.config.view.names:
            of, start = " of the attacked image" if view == VIEWS[1] else "", prefix(view)
            fields += [
                column(f"{start}predicted", pa.int32(), f"class the network puts first{of}"),
                column(f"{start}target", pa.int32(), f"class explained{of}"),
                *(column(start + name, pa.float64(), f"{meaning}{of}") for name, meaning in _NUMBERS.items()),
                column(f"{start}layers", pa.list_(pa.float32()), f"bias terms{of}", shape="[layers]", unit="logit"),
            ]
        return pa.schema(fields)

    def prepare(self, image: np.ndarray, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels uint8 [3, h, w]."""
        return {"pixels": self.config.preprocess.pixels(image)}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        self.classifier = Classifier(inputs["network"], self.config.view, device)

    def micro_batch(self, device: torch.device) -> int:
        return self.config.batch or (64 if device.type == "cuda" else 8)

    def cost(self) -> dict[str, float]:
        """Per row, in whole networks and FLOP; a backward to the input counts as one forward."""
        forwards = 6.0 if self.config.view.attack else 2.0
        return {
            "forwards_per_row": forwards,
            "flops_per_row": forwards * self._ready().operations,
            "networks_per_row": 0.0,
        }

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        classifier = self._ready()
        rows: Sequence[dict[str, Any] | None] = batch["rows"]
        x = classifier.images(batch["pixels"])
        targets, faults = self._targets(rows)
        found = [classifier.contributing(x, targets)]
        if self.config.view.attack:
            moved = classifier.attacked(x, rows, found[0].logits.argmax(dim=1))
            found.append(classifier.contributing(moved, targets))
        views = [_host(f) for f in found]
        out = []
        for i, row in enumerate(rows):
            if not batch["valid"][i]:
                continue
            mine: dict[str, Any] = {"label": (row or {}).get("label")}
            try:
                if faults[i]:
                    raise ValueError(faults[i])
                mine |= self._row(views, i)
            except ValueError as error:  # this row's label, or its numbers, are wrong; the others' are not
                mine |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            out.append(mine)
        return out

    def _ready(self) -> Classifier:
        if self.classifier is None:
            raise RuntimeError("the stage has no network yet: call setup() first")
        return self.classifier

    def _targets(self, rows: Sequence[dict[str, Any] | None]) -> tuple[torch.Tensor | None, list[str]]:
        """The classes asked for (None: each image's first), and for every row why it has none."""
        classes, asked = self._ready().classes, self.config.target
        if asked == "predicted":
            return None, [""] * len(rows)
        chosen, faults = [], []
        for row in rows:
            target = (row or {}).get("label") if asked == "label" else asked
            fault = "" if row is None or target is not None else "the row has no label, and the target is the label"
            if isinstance(target, int) and not 0 <= target < classes:
                fault = f"class {target} is none of the network's {classes}"
            chosen.append(0 if fault or target is None else int(target))
            faults.append(fault)
        return torch.tensor(chosen), faults

    def _row(self, views: Sequence[dict[str, Any]], i: int) -> dict[str, Any]:
        classifier = self._ready()
        row: dict[str, Any] = {
            "layer_names": list(views[0]["names"]),
            "activation_bytes": classifier.bytes.activations,
            "keep_bytes": classifier.bytes.keep,
            "stream_bytes": classifier.bytes.stream,
        }
        for name, view in zip(self.config.view.names, views, strict=True):
            start = prefix(name)
            logits, layers = view["logits"][i], view["layers"][i]
            if not np.isfinite(logits).all():
                raise ValueError("the network's answer is not finite: its weights or this image hold NaN or infinity")
            score, own, target = float(view["score"][i]), float(view["input"][i]), int(view["target"][i])
            residual = float(layers.sum())
            size = abs(own) + abs(residual)
            row |= {
                f"{start}predicted": int(logits.argmax()),
                f"{start}target": target,
                f"{start}score": score,
                f"{start}probability": math.exp(score - _log_sum(logits)),
                f"{start}input": own,
                f"{start}residual": residual,
                f"{start}share": residual / score if score else None,
                f"{start}magnitude": abs(residual) / size if size else 0.0,
                f"{start}gap": score - own - residual,
                f"{start}layers": layers.astype(np.float32),
            }
        return row


def _host(found: Contributions) -> dict[str, Any]:
    """One copy of everything, as float64."""
    names = ("score", "input", "layers", "logits")
    arrays = {name: getattr(found, name).double().cpu().numpy() for name in names}
    return arrays | {"target": found.target.cpu().numpy(), "names": found.names}


def _log_sum(logits: np.ndarray) -> float:
    top = float(logits.max())
    return top + math.log(float(np.exp(logits - top).sum()))
