"""Every chosen method on the same images, classes and truth: one pass that decodes and runs shared forwards once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stages.baselines.asking import Asked, classes_asked, judged_class, right_rank
from stages.baselines.compare_row import Measures, Seen, measured, result_schema
from stages.baselines.query import Output, Query
from stages.baselines.registry import Method, Setting, build, check, check_options, layers_of
from stages.blur import gaussian_blur
from stages.metrics.boxes import CENTER_SIZES, THRESHOLDS, check_thresholds
from stages.metrics.deletion import deletion_curves
from stages.metrics.mean_boxes import ALPHAS
from stages.metrics.robustness import fgsm
from stages.metrics.truth import Frame
from stages.network import Cut, cut
from stages.preprocess import Preprocess
from stages.resize import upsample


@dataclass(frozen=True)
class CompareConfig:
    """``methods`` are names of `stages.baselines.registry`, ``options`` their keyword arguments by name.

    ``asks``: the class whose map is drawn, ``label`` (the true class; the predicted one where none is known),
    ``predicted`` or ``present`` (every class with an object in the image, at most ``most``). ``objects`` says for a
    network class which classes of the truth it stands for, where the two differ (scenes and their objects, ImageNet's
    dogs and VOC's dog); a row none of whose classes is named is filtered. ``any_object``: all objects count, whatever
    their class (salient objects). ``steps`` of the deletion and insertion curves, 0 draws none; ``attack`` is FGSM's
    epsilon for pixels in 0..1, 0 attacks nothing. Other fields as in `stages.chip.localize.LocalizeConfig`.
    """

    methods: tuple[str, ...] = ("grad_cam", "gradient")
    layers: tuple[str, ...] = ("first_conv", "last_conv")
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    thresholds: tuple[float, ...] = THRESHOLDS
    alphas: tuple[float, ...] = ALPHAS
    center_sizes: tuple[float, ...] = CENTER_SIZES
    preprocess: Preprocess = field(default_factory=Preprocess)
    asks: Asked = "label"
    most: int = 8
    top: int = 5
    objects: tuple[tuple[int, tuple[int, ...]], ...] = ()
    any_object: bool = False
    frame: Literal["auto", "image", "input"] = "auto"
    inclusive: bool = True
    signed: bool = False
    output: Output = "logits"
    steps: int = 0
    attack: float = 0.0
    map_side: int = 56
    seed: int = 0
    batch: int = field(default=0, metadata={"fingerprint": False})  # rows per call; 0 chooses by device

    def __post_init__(self) -> None:
        check_thresholds(self.thresholds)
        check_thresholds(self.alphas)
        layers_of(self.methods, self.layers)  # an unknown method or a missing layer is said at once
        check_options(self.methods, self.options)
        if len(set(self.methods)) != len(self.methods):
            raise ValueError("a method is named twice: name each once")
        if self.frame == "image" and self.preprocess.frame == "crop":
            raise ValueError("frame 'image' needs a map of the whole image, and a crop sees a part: use frame 'input'")
        if self.asks not in ("label", "predicted", "present") or self.frame not in ("auto", "image", "input"):
            raise ValueError(f"asks {self.asks!r} or frame {self.frame!r} is not one of the choices")
        if self.top < 1 or self.most < 1 or self.steps < 0 or not 0 <= self.attack < 1:
            raise ValueError("top and most are at least 1, steps at least 0, attack is in 0..1")

    @property
    def where(self) -> Frame:
        in_input = self.frame == "input" or (self.frame == "auto" and self.preprocess.frame == "crop")
        return Frame(self.preprocess, in_input, self.inclusive)

    @property
    def measures(self) -> Measures:
        return Measures(
            self.methods, self.thresholds, self.alphas, self.center_sizes, self.where, self.any_object, self.map_side
        )


class Compare:
    """One row per image: how each method's map of the asked classes does by every measure that the row's truth allows.

    Inputs: "network", and "solve" (rows layer, class_id, w) where a CHIP method is among the methods.
    """

    version = 4
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: CompareConfig) -> None:
        self.config = config
        self.cut: Cut | None = None
        self.methods: dict[str, Method] = {}

    @property
    def schema(self) -> pa.Schema:
        return result_schema(self.config.measures, curves=self.config.steps > 0, attack=self.config.attack > 0)

    def prepare(self, image: NDArray[np.uint8], row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels [3, h, w] and size (width, height): the row's where it says, else the image's."""
        size = (row.get("width") or image.shape[1], row.get("height") or image.shape[0])
        return {"pixels": self.config.preprocess.pixels(image), "size": np.array(size, dtype=np.int32)}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        config = self.config
        height, width = config.preprocess.size
        layers = layers_of(config.methods, config.layers) or ("last_conv",)
        with torch.no_grad():
            self.cut = cut(inputs["network"], layers, torch.zeros(1, 3, height, width, device=device))
        tables = {name: table for name, table in inputs.items() if name != "network"}
        setting = Setting(config.layers, config.signed, tables, config.options, config.preprocess)
        self.methods = {name: build(name, setting) for name in config.methods}
        check(self.methods, self.cut)
        self.device = device

    def micro_batch(self, device: torch.device) -> int:
        return self.config.batch or (8 if device.type == "cpu" else 32)

    def cost(self) -> dict[str, float]:
        """Per row and one asked class, in whole networks and FLOP; a backward counts as two forwards."""
        if self.cut is None:
            raise RuntimeError("cost() needs the network: call setup() first")
        each = sum(m.passes[0] + 2 * m.passes[1] for m in self.methods.values())
        curves = 2.0 * (self.config.steps + 1) * len(self.methods) if self.config.steps else 0.0
        forwards = 1.0 + each * (2 if self.config.attack else 1) + curves + (3.0 if self.config.attack else 0.0)
        plain = self.cut.operations(next(iter(self.cut.layers))).plain
        return {"forwards_per_row": forwards, "flops_per_row": forwards * plain, "networks_per_row": 0.0}

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.cut is None:
            raise RuntimeError("the stage has no network yet: call setup() first")
        config = self.config
        pixels = torch.as_tensor(np.asarray(batch["pixels"]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        rows: Sequence[dict[str, Any] | None] = batch["rows"]
        query = self._query(config.preprocess.normalise(pixels), batch["key"])
        probabilities = query.probabilities.cpu().numpy()
        asked = classes_asked(rows, probabilities, config.asks, dict(config.objects), config.most)
        width = max(len(pairs) for pairs in asked)
        targets = [[pairs[r % len(pairs)][0] for r in range(width)] for pairs in asked]
        query = query.asking(torch.tensor(targets))
        ranked = query.ranked.cpu().numpy()
        maps = {name: method.maps(query).detach().float() for name, method in self.methods.items()}
        attacked, after = self._attacked(query) if config.attack else ({}, ranked)
        curves = {name: self._curves(query, heat[:, 0]) for name, heat in maps.items()} if config.steps else {}
        out = []
        for i, row in enumerate(rows):
            if not batch["valid"][i]:
                continue
            judged = judged_class(row or {}, config.asks, dict(config.objects), asked[i][0])
            seen = Seen(
                row or {},
                asked[i],
                ranked[i],
                probabilities[i],
                {name: heat[i] for name, heat in maps.items()},
                {name: heat[i, 0] for name, heat in attacked.items()},
                {name: (down[i], up[i]) for name, (down, up) in curves.items()},
                judged,
                right_rank(ranked[i], judged, config.asks, dict(config.objects)),
                right_rank(after[i], judged, config.asks, dict(config.objects)),
            )
            out.append(measured(config.measures, seen, *(int(n) for n in batch["size"][i])))
        return out

    def _query(self, x: torch.Tensor, keys: Sequence[str]) -> Query:
        config = self.config
        assert self.cut is not None
        return Query(self.cut, x, top=config.top, output=config.output, keys=tuple(keys), seed=config.seed)

    def _attacked(self, query: Query) -> tuple[dict[str, torch.Tensor], NDArray[np.int64]]:
        """Maps of the first asked class on inputs that were attacked for it, and the classes predicted there."""
        first, preprocess = query.targets[:, :1], self.config.preprocess
        moved = fgsm(query.forward, query.x, first[:, 0], self.config.attack, preprocess.mean, preprocess.std)
        other = self._query(moved, query.keys).asking(first)
        maps = {name: method.maps(other).detach().float() for name, method in self.methods.items()}
        return maps, other.ranked.cpu().numpy()

    def _curves(self, query: Query, heat: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Deletion (to the mean colour) and insertion (from a blur) of the first asked class: [B, steps + 1] each."""
        first = query.targets[:, :1]
        large = upsample(heat[:, None].nan_to_num(nan=0.0), (query.x.shape[2], query.x.shape[3]))[:, 0]

        def score(x: torch.Tensor) -> torch.Tensor:
            return query.forward(x).softmax(dim=1).gather(1, first)[:, 0]

        down = deletion_curves(score, query.x, torch.zeros_like(query.x), large, self.config.steps)
        up = deletion_curves(score, gaussian_blur(query.x, 5.0), query.x, large, self.config.steps)
        return down.float().cpu().numpy(), up.float().cpu().numpy()
