"""The GFI stage: a mask, its boxes and its scores for every image and asked class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stages.gfi.background import blurred, blurred_image, noise
from stages.gfi.columns import schema
from stages.gfi.config import GfiConfig
from stages.gfi.explainer import Answer, Begun, Explainer
from stages.gfi.judge import measure, truth_of
from stages.gfi.mask import enlarge
from stages.metrics.robustness import fgsm
from stages.resize import upsample

Asked = list[tuple[int, str]]  # class id and what it came from


class GfiStage:
    """Measuring stage. Input: "network", an nn.Module in eval mode on the device; it is copied, not changed."""

    version = 4
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: GfiConfig) -> None:
        self.config = config
        self.explainer: Explainer | None = None

    @property
    def schema(self) -> pa.Schema:
        return schema(self.config)

    def prepare(self, image: NDArray[np.uint8], row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels [3, h, w], size (width, height), and the authors' blur, made before resizing."""
        config = self.config
        size = (row.get("width") or image.shape[1], row.get("height") or image.shape[0])
        arrays = {"pixels": config.preprocess.pixels(image), "size": np.array(size, dtype=np.int32)}
        if self._blurs_image:
            arrays["blurred"] = config.preprocess.pixels(blurred_image(image))
        return arrays

    @property
    def _blurs_image(self) -> bool:
        return self.config.background == "blur" and self.config.preset == "authors"

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        config = self.config
        self.device = device
        self.explainer = Explainer(
            inputs["network"],
            torch.zeros(1, 3, *config.preprocess.size, device=device),
            config.recipe,
            inversion_layer=config.inversion_layer,
            mask_layer=config.mask_layer,
            precision=config.precision,
            speed=config.speed,
        )

    def micro_batch(self, device: torch.device) -> int:
        """From the free memory of a GPU and what a step keeps; on a CPU a few, where larger batches gain nothing."""
        if self.config.batch:
            return self.config.batch
        if device.type != "cuda" or self.explainer is None:
            return 8
        free, _ = torch.cuda.mem_get_info(device)
        return self.explainer.images_within(0.6 * free)

    def cost(self) -> dict[str, float]:
        """Per row and one target each, in whole networks and FLOP; a backward to the input counts as one forward."""
        if self.explainer is None:
            raise RuntimeError("cost() needs the network: call setup() first")
        inversion, of_class = self.config.recipe.steps
        many = len(self.config.targets)
        share = self.explainer.operations.prefix / self.explainer.operations.plain
        forwards = 1 + 2 + 2 * inversion * share + many * (4 * of_class + 2) + (2 if self.config.attack else 0)
        flops = forwards * self.explainer.operations.plain
        return {"forwards_per_row": forwards, "flops_per_row": flops, "networks_per_row": 0.0}

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.explainer is None:
            raise RuntimeError("the stage has no network yet: call setup() first")
        rows: Sequence[dict[str, Any] | None] = batch["rows"]
        x = self._normalised(batch["pixels"])
        clean = None
        if self.config.attack:
            x, clean = self._attacked(x, [(row or {}).get("label") for row in rows])
        begun = self.explainer.begin(x, self._background(batch, x))
        predicted = begun.probabilities.argmax(dim=1).cpu().tolist()
        classes = begun.probabilities.shape[1]
        asked, faults = self._asked(rows, predicted, classes)
        # Each image keeps its place in the batch whatever its neighbours ask for: idle places repeat their first class.
        answers = []
        for rank in range(max((len(a) for a in asked), default=0)):
            ids = [a[rank][0] if rank < len(a) else a[0][0] if a else 0 for a in asked]
            answers.append(self.explainer.answer(begun, torch.tensor(ids, device=self.device)))
        fetched = _Fetched(self.explainer, begun, answers)
        out = []
        for i, row in enumerate(rows):
            if not batch["valid"][i]:
                continue
            width, height = (int(n) for n in batch["size"][i])
            found: dict[str, Any] = {
                "label": (row or {}).get("label"),
                "predicted": predicted[i],
                "predicted_clean": None if clean is None else clean[i],
                "width": width,
                "height": height,
            }
            try:
                if faults[i]:
                    raise ValueError(faults[i])
                found |= self._row(fetched, i, asked[i], row or {}, width, height)
            except ValueError as error:  # this row's truth, or its numbers, are wrong; the others' are not
                found |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            out.append(found)
        return out

    def _normalised(self, pixels: Any) -> torch.Tensor:
        tensor = torch.as_tensor(np.asarray(pixels))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        return self.config.preprocess.normalise(tensor)

    def _background(self, batch: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
        if self._blurs_image:
            return self._normalised(batch["blurred"])
        if self.config.background == "blur":
            return blurred(x)
        if self.config.background == "mean":
            return torch.zeros_like(x)
        return noise(self.config.seed, batch["key"], x.shape[1:]).to(x)

    def _attacked(self, x: torch.Tensor, labels: Sequence[int | None]) -> tuple[torch.Tensor, list[int]]:
        """The attacked images and the classes predicted before; an image without a label moves off its prediction."""
        assert self.explainer is not None
        x = x.to(self.explainer.dtype)
        with torch.no_grad():
            logits = self.explainer.logits(x)
        clean: list[int] = logits.argmax(dim=1).cpu().tolist()
        away = [c if t is None or not 0 <= t < logits.shape[1] else t for c, t in zip(clean, labels, strict=True)]
        against = torch.tensor(away, device=x.device)
        epsilon, preprocess = self.config.attack / 255, self.config.preprocess
        return fgsm(self.explainer.logits, x, against, epsilon, preprocess.mean, preprocess.std), clean

    def _asked(
        self, rows: Sequence[dict[str, Any] | None], predicted: Sequence[int], classes: int
    ) -> tuple[list[Asked], list[str]]:
        """For every image its classes, and why it has none."""
        asked: list[Asked] = []
        faults: list[str] = []
        for row, first in zip(rows, predicted, strict=True):
            mine: Asked = []
            for target in self.config.targets if row is not None else ():
                if target == "predicted":
                    mine.append((first, "predicted"))
                elif target == "labels":
                    mine += [(c, "labels") for c in _classes_of(row or {})]
                elif target == "label":
                    mine += [(int(row["label"]), "label")] if row.get("label") is not None else []  # type: ignore[index, union-attr]
                else:
                    mine.append((int(target), str(target)))
            wrong = [c for c, _ in mine if not 0 <= c < classes]
            fault = f"class {wrong[0]} is none of the network's {classes}" if wrong else ""
            if not mine and row is not None:
                fault = "the row has no label, and targets asks for nothing else"
            asked.append([] if fault else mine)
            faults.append(fault)
        return asked, faults

    def _row(
        self, fetched: _Fetched, i: int, asked: Asked, row: dict[str, Any], width: int, height: int
    ) -> dict[str, Any]:
        config = self.config
        found = fetched.columns(i, asked)
        frame = config.preprocess.size if config.in_input else (height, width)
        before = _in_frame(fetched.before[i], frame)
        measured = []
        for rank, (class_id, source) in enumerate(asked):
            judged = row.get("label") if source == "predicted" else class_id
            truth = truth_of(config, row, judged, width, height)
            measured.append(measure(config, _in_frame(fetched.masks[rank][i], frame), before, truth))
        return found | {name: np.stack([np.asarray(m[name]) for m in measured]) for name in measured[0]}


def _classes_of(row: Mapping[str, Any]) -> list[int]:
    """The classes of an image, its label first: localization judges the first target."""
    label, found = row.get("label"), [int(c) for c in row.get("labels") or ()]
    return sorted(found, key=lambda c: c != label)


class _Fetched:
    """A batch's answers on the host."""

    def __init__(self, explainer: Explainer, begun: Begun, answers: Sequence[Answer]) -> None:
        self.explainer, self.begun = explainer, begun
        size = (begun.problem.x.shape[2], begun.problem.x.shape[3])
        upsampling = explainer.recipe.upsampling
        starting = explainer.low_mask(begun, begun.problem.start())
        self.before = enlarge(starting, size, upsampling)[:, 0].float().cpu()
        self.low = [explainer.low_mask(begun, answer.w).cpu() for answer in answers]
        self.masks = [enlarge(low, size, upsampling)[:, 0].float() for low in self.low]
        names = ("w", "losses", "kept_scores", "removed_scores", "kept_after", "removed_after")
        self.answers = [{name: getattr(a, name).double().cpu().numpy() for name in names} for a in answers]
        self.whole, self.kept, self.removed = (
            p.double().cpu().numpy() for p in (begun.probabilities, begun.kept_before, begun.removed_before)
        )

    def columns(self, i: int, asked: Asked) -> dict[str, Any]:
        """One image's columns. ValueError where a number is not finite."""
        ids = [c for c, _ in asked]
        mine = [{name: value[i] for name, value in a.items()} for a in self.answers[: len(ids)]]
        if not np.isfinite(self.whole[i]).all():
            raise ValueError("the network's answer is not finite: its weights or this image hold NaN or infinity")
        if not all(np.isfinite(value).all() for a in mine for value in a.values()):
            raise ValueError("the optimisation left the finite numbers: features too large for this precision")
        nonzero = [np.flatnonzero(a["w"]) for a in mine]
        low = np.stack([m[i].numpy() for m in self.low[: len(ids)]])
        return {
            "targets": np.array(ids, dtype=np.int32),
            "asked": [source for _, source in asked],
            "score": self.whole[i, ids],
            "kept_before": self.kept[i, ids],
            "removed_before": self.removed[i, ids],
            "kept_after": np.stack([a["kept_after"] for a in mine]),
            "removed_after": np.stack([a["removed_after"] for a in mine]),
            "loss": np.stack([a["losses"] for a in mine]),
            "kept_path": np.stack([a["kept_scores"] for a in mine]),
            "removed_path": np.stack([a["removed_scores"] for a in mine]),
            "zeros": np.array([1 - len(n) / len(a["w"]) for n, a in zip(nonzero, mine, strict=True)]),
            "channels": len(mine[0]["w"]),
            "w_count": np.array([len(n) for n in nonzero], dtype=np.int32),
            "w_index": np.concatenate(nonzero).astype(np.int32),
            "w_value": np.concatenate([a["w"][n] for a, n in zip(mine, nonzero, strict=True)]).astype(np.float32),
            "mask": low.astype(np.float16),
            "mask_shape": np.array(low.shape[1:], dtype=np.int32),
            "input_shape": np.array(self.begun.problem.x.shape[2:], dtype=np.int32),
            "upsampling": self.explainer.recipe.upsampling,
            "flat": [bool(m.max() == m.min()) for m in low],
        }


def _in_frame(mask: torch.Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """A mask [H, W] over the input, in the frame of comparison: bilinear, corners not aligned."""
    if tuple(mask.shape) == tuple(size):
        return mask.numpy()
    return upsample(mask[None, None], size)[0, 0].numpy()
