"""What the trained network says of each image: fine scores, coarse class, and how they led to it.

Which scores make a predicted set is decided later (`stages.semantic.indexes`), over these rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stages.preprocess import Preprocess
from stages.schema import column
from stages.semantic.network import TwoLevelNetwork, two_level_network


@dataclass(frozen=True)
class TwoLevelEvaluateConfig:
    """``preprocess`` is that of the training. ``top``: how many fine classes the decision path keeps."""

    preprocess: Preprocess = field(default_factory=Preprocess)
    top: int = 5
    batch: int = field(default=0, metadata={"fingerprint": False})  # rows per call; 0 chooses by device

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top {self.top}: a decision path has at least 1 class")


class TwoLevelEvaluate:
    """Rows of the key table may have ``fine`` (class ids) and ``coarse`` (id), which are passed on.

    Inputs: "network", the result of `stages.semantic.train.train_two_level` as ``files`` and ``facts``, and
    "backbone", the classifier it was trained on.
    """

    version = 2
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: TwoLevelEvaluateConfig) -> None:
        self.config = config
        self.network: TwoLevelNetwork | None = None

    @property
    def schema(self) -> pa.Schema:
        ids, single = pa.list_(pa.int32()), pa.list_(pa.float32())
        chosen = "of the fine classes that add most to the chosen coarse logit"
        # Fine scores are kept as computed: rounded to float16, one could cross a threshold or tie with another.
        rows = [
            column("true", ids, "true fine classes, rising; null if unknown"),
            column("coarse_true", pa.int32(), "true coarse class; null if unknown or people-only"),
            column("fine_scores", single, "softmax or sigmoid of the fine head; empty without one", shape="[fine]"),
            column("coarse", pa.int32(), "predicted coarse class"),
            column("coarse_scores", single, "softmax of the coarse head", shape="[coarse]"),
            column("path_fine", ids, f"ids {chosen}; empty: it does not read them", shape="[top]"),
            column("path_score", single, f"scores {chosen}", shape="[top]"),
            column("path_contribution", single, "weight x score, largest first", shape="[top]"),
            column("path_rest", pa.float32(), "what all other fine classes add together"),
            column("path_bias", pa.float32(), "the chosen class's bias: path, rest and bias sum to its logit"),
        ]
        return pa.schema(rows)

    def prepare(self, image: NDArray[np.uint8], row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels [3, h, w]."""
        return {"pixels": self.config.preprocess.pixels(image)}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        trained = inputs["network"]
        network = two_level_network(inputs["backbone"], trained.facts, trained.files, self.config.preprocess.size)
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device

    def micro_batch(self, device: torch.device) -> int:
        return self.config.batch or (16 if device.type == "cpu" else 128)

    def cost(self) -> dict[str, float]:
        """Per row, in whole networks and FLOP."""
        if self.network is None:
            raise RuntimeError("cost() needs the network: call setup() first")
        return {"forwards_per_row": 1.0, "flops_per_row": self.network.flops, "networks_per_row": 0.0}

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.network is None:
            raise RuntimeError("the stage has no network yet: call setup() first")
        network, heads = self.network, self.network.heads
        pixels = torch.as_tensor(np.asarray(batch["pixels"]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        outputs = network(self.config.preprocess.normalise(pixels).contiguous(memory_format=torch.channels_last))
        coarse = outputs.coarse.argmax(1)
        found: dict[str, NDArray[np.float32]] = {"coarse_scores": outputs.coarse.softmax(1).cpu().numpy()}
        if outputs.fine is not None:
            scores = heads.scores(outputs.fine)
            found["scores"] = scores.cpu().numpy()
            if network.config.reads_fine:
                found["added"] = heads.contributions(scores, coarse).cpu().numpy()
                found["bias"] = heads.coarse.bias[coarse].cpu().numpy()
        rows: Sequence[dict[str, Any] | None] = batch["rows"]
        chosen = coarse.cpu().numpy()
        return [
            self._row(row or {}, int(chosen[i]), {name: values[i] for name, values in found.items()})
            for i, row in enumerate(rows)
            if batch["valid"][i]
        ]

    def _row(self, row: Mapping[str, Any], coarse: int, found: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
        scores = found.get("scores", np.zeros(0, np.float32))
        out: dict[str, Any] = {
            "true": None if row.get("fine") is None else sorted(int(f) for f in row["fine"]),
            "coarse_true": row.get("coarse"),
            "fine_scores": scores,
            "coarse": coarse,
            "coarse_scores": found["coarse_scores"],
        }
        return out | self._path(scores, found)

    def _path(self, scores: NDArray[np.float32], found: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
        """Which fine classes led to the chosen coarse one."""
        if "added" not in found:
            return {"path_fine": [], "path_score": [], "path_contribution": [], "path_rest": None, "path_bias": None}
        added = found["added"]
        order = np.argsort(-added, kind="stable")
        top, rest = order[: self.config.top], order[self.config.top :]
        return {
            "path_fine": top.astype(np.int32),
            "path_score": scores[top],
            "path_contribution": added[top],
            "path_rest": float(added[rest].sum(dtype=np.float64)),
            "path_bias": float(found["bias"]),
        }
