"""Where each method looks, measured in boxes: the localization pass over images with true boxes (or masks)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from stages.baselines.query import Output, Query
from stages.baselines.rectangles import RECTANGLES
from stages.baselines.registry import Method, Setting, build, layers_of
from stages.metrics.boxes import CENTER_SIZES, THRESHOLDS, best_iou, check_thresholds, level_boxes, threshold_levels
from stages.metrics.masks import level_mask_ious
from stages.metrics.truth import Frame
from stages.network import Cut, cut
from stages.preprocess import Preprocess
from stages.resize import upsample
from stages.schema import column


@dataclass(frozen=True)
class LocalizeConfig:
    """``methods`` are names of `stages.baselines.registry`; ``layers`` the layers by role, first to last, as fitted.

    ``frame`` is where boxes are compared: "image" upsamples the map to the image and uses the image's own pixels (the
    squash frame covers it), "input" moves the true boxes into the network's input, clipped; "auto" is image for squash,
    input for crop. ``ranks``: "needed" draws boxes for the first predicted class and for the true one, which are all
    that the errors depend on; "all" draws them for all ``top`` classes. ``inclusive``: boxes name their last pixel (as
    ILSVRC and VOC do), else its far edge (COCO). Kept maps are averaged down to at most ``map_side``; 0 keeps none.
    """

    methods: tuple[str, ...] = ("chip", "refined_chip", "grad_cam", "gradient")
    layers: tuple[str, ...] = ("first_conv", "last_conv")
    thresholds: tuple[float, ...] = THRESHOLDS
    center_sizes: tuple[float, ...] = CENTER_SIZES
    preprocess: Preprocess = field(default_factory=Preprocess)
    top: int = 5
    ranks: Literal["needed", "all"] = "needed"
    frame: Literal["auto", "image", "input"] = "auto"
    signed: bool = False
    inclusive: bool = True
    output: Output = "logits"
    map_side: int = 56
    batch: int = field(default=0, metadata={"fingerprint": False})  # rows per call; 0 chooses by device

    def __post_init__(self) -> None:
        check_thresholds(self.thresholds)
        layers_of(self.methods, self.layers)  # an unknown method or a missing layer is said at once
        if self.frame == "image" and self.preprocess.frame == "crop":
            raise ValueError("frame 'image' needs a map of the whole image, and a crop sees a part: use frame 'input'")
        if self.ranks not in ("needed", "all") or self.frame not in ("auto", "image", "input") or self.top < 1:
            raise ValueError(f"ranks {self.ranks!r}, frame {self.frame!r} or top {self.top} is not one of the choices")

    @property
    def in_input(self) -> bool:
        return self.frame == "input" or (self.frame == "auto" and self.preprocess.frame == "crop")


class Localize:
    """Maps of the predicted classes, boxed at every threshold and compared with the true boxes.

    Inputs: "network", and "solve" (rows layer, class_id, w) where a CHIP method is among the methods.
    """

    version = 2  # flagged weights count as no fit
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: LocalizeConfig) -> None:
        self.config = config
        self.frame = Frame(config.preprocess, config.in_input, config.inclusive)
        self.cut: Cut | None = None
        self.methods: dict[str, Method] = {}

    @property
    def schema(self) -> pa.Schema:
        single, half = pa.list_(pa.float32()), pa.list_(pa.float16())
        rows = [
            column("label", pa.int32(), "true class id; null if unknown"),
            column("classes", pa.list_(pa.int32()), "predicted class ids, best first", shape="[ranks]"),
            column("scores", single, "their softmax probabilities", shape="[ranks]"),
            column("width", pa.int32(), "of the original image", unit="pixels"),
            column("height", pa.int32(), "of the original image", unit="pixels"),
            column("nonfinite", pa.list_(pa.string()), "methods with a map that is not finite; such pixels count as 0"),
            column("iou/whole_image", single, "best IoU with a box of the true class; empty: no label or no box"),
            column("iou/center", single, "the same for centred boxes", shape="[sizes]"),
        ]
        whole, of_box = pa.list_(pa.int32()), "[thresholds, x0 y0 x1 y1]"
        overlap = (
            "best IoU of the box of a class's map with a box of the true class; NaN: no fit; "
            "-1: not drawn, the class is neither the first nor the true one; empty: no label or no box"
        )
        kept = "IoU of the first class's kept pixels with the mask; empty: no mask"
        heat = "map of the first class, scaled to a largest magnitude of 1; empty: no fit"
        for method in self.config.methods:
            rows += [
                column(f"iou/{method}", single, overlap, shape="[ranks, thresholds]"),
                column(f"mask_iou/{method}", single, kept, shape="[thresholds]"),
                column(f"box/{method}", whole, "box of the first class; empty: no fit", shape=of_box, unit="pixels"),
                column(f"map/{method}", half, heat, shape="[h, w]"),
                column(f"map_shape/{method}", whole, "height and width of the map"),
            ]
        grid = {b"thresholds": " ".join(map(str, self.config.thresholds)).encode()}
        return pa.schema(rows, metadata=grid)

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
        setting = Setting(config.layers, config.signed, {name: t for name, t in inputs.items() if name != "network"})
        self.methods = {name: build(name, setting) for name in config.methods}
        self.device = device

    def micro_batch(self, device: torch.device) -> int:
        return self.config.batch or (8 if device.type == "cpu" else 32)

    def cost(self) -> dict[str, float]:
        """Per row, in whole networks and FLOP; a backward counts as two forwards."""
        if self.cut is None:
            raise RuntimeError("cost() needs the network: call setup() first")
        asked = 2 if self.config.ranks == "needed" else self.config.top
        forwards = 1.0 + sum(m.passes[0] + 2 * asked * m.passes[1] for m in self.methods.values())
        plain = self.cut.operations(next(iter(self.cut.layers))).plain
        return {"forwards_per_row": forwards, "flops_per_row": forwards * plain, "networks_per_row": 0.0}

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.cut is None:
            raise RuntimeError("the stage has no network yet: call setup() first")
        pixels = torch.as_tensor(np.asarray(batch["pixels"]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        rows: Sequence[dict[str, Any] | None] = batch["rows"]
        query = Query(
            self.cut,
            self.config.preprocess.normalise(pixels),
            top=self.config.top,
            output=self.config.output,
            keys=tuple(batch["key"]),
        )
        ranked = query.ranked.cpu().numpy()
        ranks = self._ranks(ranked, [None if row is None else row.get("label") for row in rows])
        asked = torch.from_numpy(np.take_along_axis(ranked, ranks, axis=1))
        query = query.asking(asked)
        maps = {name: method.maps(query).detach().float() for name, method in self.methods.items()}
        scores = query.probabilities.gather(1, torch.from_numpy(ranked).to(self.device)).cpu().numpy()
        out = []
        for i, row in enumerate(rows):
            if not batch["valid"][i]:
                continue
            width, height = (int(n) for n in batch["size"][i])
            found: dict[str, Any] = {
                "label": None if row is None else row.get("label"),
                "classes": ranked[i].astype(np.int32),
                "scores": scores[i].astype(np.float32),
                "width": width,
                "height": height,
            }
            try:
                found |= self._measure(
                    {m: v[i] for m, v in maps.items()}, ranks[i], len(ranked[i]), row or {}, width, height
                )
            except ValueError as error:  # this row's boxes or masks are wrong; the others' are not
                found |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            out.append(found)
        return out

    def _ranks(self, ranked: NDArray[np.int64], labels: Sequence[int | None]) -> NDArray[np.int64]:
        """Which of the predicted classes [B, R] to draw: [B, asked], the first one first; repeats are drawn once."""
        if self.config.ranks == "all":
            return np.broadcast_to(np.arange(ranked.shape[1]), ranked.shape).copy()
        out = np.zeros((len(ranked), 2), dtype=np.int64)
        for i, label in enumerate(labels):
            if label is not None and label in ranked[i]:
                out[i, 1] = np.flatnonzero(ranked[i] == label)[0]
        return out

    def _measure(
        self,
        maps: dict[str, torch.Tensor],
        ranks: NDArray[np.int64],
        top: int,
        row: dict[str, Any],
        width: int,
        height: int,
    ) -> dict[str, Any]:
        """``maps``: per method [asked, h, w] of one image. Its columns beyond the prediction."""
        config = self.config
        truths, mask = self._truth(row, width, height)
        height, width = self.frame.size(width, height)
        judged = truths is not None and len(truths) > 0
        drawn = np.unique(ranks, return_index=True)[1]  # rank 0 first: np.unique sorts
        out: dict[str, Any] = {"nonfinite": []}
        for name, rectangle in RECTANGLES.items():
            boxes = self.frame.edges(rectangle(width, height, config.center_sizes))
            ious = best_iou(boxes, truths, inclusive=config.inclusive) if judged else np.zeros(0)  # type: ignore[arg-type]
            out[f"iou/{name}"] = ious.astype(np.float32)
        for name, asked in maps.items():
            finite = torch.isfinite(asked).flatten(1)
            answered = finite.any(dim=1).cpu().numpy()  # all NaN: no answer for this class
            if not bool(finite[torch.from_numpy(answered)].all()):
                out["nonfinite"].append(name)
            asked = asked.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            out |= self._kept_map(name, asked[0] if answered[0] else asked[0, :0])
            out[f"iou/{name}"] = out[f"mask_iou/{name}"] = np.zeros(0, dtype=np.float32)
            large = upsample(asked[torch.from_numpy(drawn)][None], (height, width))[0].cpu().numpy()
            levels = threshold_levels(large, config.thresholds)
            boxes = self.frame.edges(level_boxes(levels, len(config.thresholds)))
            out[f"box/{name}"] = boxes[0 if answered[0] else slice(0)].ravel().astype(np.int32)
            if judged:
                ious = np.full((top, len(config.thresholds)), -1.0, dtype=np.float32)
                ious[ranks[drawn]] = best_iou(boxes, truths, inclusive=config.inclusive)  # type: ignore[arg-type]
                ious[ranks[~answered]] = np.nan
                out[f"iou/{name}"] = ious.ravel()
            if mask is not None:
                shares = level_mask_ious(levels[0], mask, len(config.thresholds))
                out[f"mask_iou/{name}"] = (shares if answered[0] else np.full_like(shares, np.nan)).astype(np.float32)
        return out

    def _kept_map(self, name: str, heat: torch.Tensor) -> dict[str, Any]:
        side = self.config.map_side
        if not side or not heat.numel():
            return {f"map/{name}": np.zeros(0, dtype=np.float16), f"map_shape/{name}": np.zeros(0, dtype=np.int32)}
        shape = (min(side, heat.shape[0]), min(side, heat.shape[1]))
        small = adaptive_avg_pool2d(heat[None], shape)[0]
        scaled = small / small.abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # float16 has few exponents
        return {
            f"map/{name}": scaled.flatten().cpu().numpy().astype(np.float16),
            f"map_shape/{name}": np.array(shape, dtype=np.int32),
        }

    def _truth(
        self, row: dict[str, Any], width: int, height: int
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_] | None]:
        """Boxes [n, 4] and mask [H, W] of the true class in the frame of comparison; None where the row has none."""
        if row.get("label") is None:
            return None, None
        mine = self.frame.objects(row, {row["label"]})
        return self.frame.boxes(row, mine, width, height), self.frame.mask(row, mine, width, height)
