"""What a trained agent asks about each image, what it is told, and what it makes of it: a measuring stage."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from stages.asking.agent import UNetAgent, trained_agent
from stages.asking.paradigm import Task
from stages.asking.process import Process, process, turns_cost
from stages.asking.train import PIXELS
from stages.preprocess import Preprocess
from stages.schema import column


@dataclass(frozen=True)
class AskConfig:
    """``preprocess``: size and frame the agent sees, as in its training. ``map_size``: the side a question is kept at
    (averaged over areas, so what it covers of a region stays), never larger than what the agent sees. ``keep``: the
    pictures that are kept. As many answers are given as in the training.
    """

    preprocess: Preprocess = PIXELS
    map_size: int = 32
    keep: Literal["all", "last", "none"] = "all"
    batch: int = field(default=0, metadata={"fingerprint": False})  # images in a call; 0 chooses by device

    def __post_init__(self) -> None:
        if self.map_size < 1 or self.keep not in ("all", "last", "none"):
            raise ValueError(f"map_size is from 1 on, keep is all, last or none; got {self}")

    @property
    def map_shape(self) -> tuple[int, int]:
        height, width = self.preprocess.size
        return min(self.map_size, height), min(self.map_size, width)


class Ask:
    """Input: "agent", the result of `stages.asking.train.train_asking` as ``files`` and ``facts``."""

    version = 1
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: AskConfig) -> None:
        self.config = config
        self.agent: UNetAgent | None = None

    @property
    def schema(self) -> pa.Schema:
        floats, half, single = pa.list_(pa.float32()), pa.list_(pa.float16()), pa.list_(pa.uint8())
        height, width = self.config.map_shape
        kept = {"all": "after 0..T answers", "last": "after all answers", "none": "none kept"}[self.config.keep]
        return pa.schema(
            [
                column("hints", pa.int32(), "T: answers given"),
                column("psnr", floats, "of the picture after 0..T answers; inf: equal", shape="[T + 1]", unit="dB"),
                column("questions", half, "0..1, averaged over areas", shape=f"[T, {height}, {width}]"),
                column("question_shape", pa.list_(pa.int32()), "h and w of a question"),
                column("answers", floats, "exact, in units of y: ab / 110 (natural), 2 RGB - 1", shape="[T, K]"),
                column("answer_rgb", single, "the answers for people", shape="[T, 3]"),
                column("pictures", pa.list_(pa.binary()), f"PNG, {kept}"),
                column("picture_shape", pa.list_(pa.int32()), "height and width of a picture", unit="pixels"),
            ]
        )  # fmt: skip

    def prepare(self, image: NDArray[np.uint8], row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels [3, h, w]."""
        return {"pixels": self.config.preprocess.pixels(image)}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        trained = inputs["agent"]
        self.task, agent = trained_agent(trained.facts, trained.files)
        self.agent = agent.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.hints = device, self.task.hints

    def micro_batch(self, device: torch.device) -> int:
        return self.config.batch or (8 if device.type == "cpu" else 128)

    def cost(self) -> dict[str, float]:
        """Per row: a forward pass for each turn."""
        agent, task = self._ready()
        return turns_cost(agent, task, self.config.preprocess.size, self.device, self.hints + 1)

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        agent, task = self._ready()
        pixels = torch.as_tensor(np.asarray(batch["pixels"]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        found = process(agent, task, pixels, self.hints)
        if not bool(torch.isfinite(found.error).all()):
            raise ValueError("what the agent makes of an image is not finite")
        valid = [at for at, given in enumerate(batch["valid"]) if given]
        return [self._row(found, at) for at in valid]

    def _row(self, found: Process, at: int) -> dict[str, Any]:
        first = {"all": 0, "last": self.hints, "none": self.hints + 1}[self.config.keep]
        questions = F.interpolate(found.questions[at][None], self.config.map_shape, mode="area")[0]
        return {
            "hints": self.hints,
            "psnr": found.psnr[at].float().cpu().numpy(),
            "questions": questions.half().cpu().numpy().ravel(),
            "question_shape": np.array(self.config.map_shape, np.int32),
            "answers": found.answers[at].float().cpu().numpy().ravel(),
            "answer_rgb": found.colours[at].cpu().numpy().ravel(),
            "pictures": [_png(picture) for picture in found.pictures[at][first:].cpu().numpy()],
            "picture_shape": np.array(self.config.preprocess.size, np.int32),
        }

    def _ready(self) -> tuple[UNetAgent, Task]:
        if self.agent is None:
            raise RuntimeError("the stage has no agent yet: call setup() first")
        return self.agent, self.task


def _png(picture: NDArray[np.uint8]) -> bytes:
    """uint8 [3, h, w] -> a PNG file."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(sink, "PNG", compress_level=6)
    return sink.getvalue()
