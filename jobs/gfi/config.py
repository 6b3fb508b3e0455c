"""What a user writes of a guided feature inversion job."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic import Field, model_validator

from jobs.config import JobConfig, Section
from jobs.sections import JudgedSplit, Network, inclusive
from stages.gfi.config import GfiConfig as StageConfig
from stages.gfi.layers import AUTO
from stages.metrics.boxes import THRESHOLDS
from stages.metrics.mean_boxes import ALPHAS
from stages.preprocess import Preprocess


class GfiData(Section):
    """Thresholds are chosen on ``tune`` (without it: on one half of ``eval`` for the other), measured on ``eval``."""

    eval: JudgedSplit
    tune: JudgedSplit | None = None


class GfiSection(Section):
    """What is optimised; fields as in stages.gfi.config.GfiConfig.

    ``framing``: "preset" lets the authors' preset resize the short side and crop the centre, as their code does;
    "model" takes what ``model.preprocess`` says for either preset.
    """

    preset: Literal["paper", "authors"] = "paper"
    targets: tuple[int | str, ...] = ("predicted",)
    background: Literal["blur", "mean", "noise"] = "blur"
    inversion_layer: str = AUTO
    mask_layer: str = AUTO
    inversion_steps: int | None = Field(default=None, ge=0)
    class_steps: int | None = Field(default=None, ge=0)
    gamma: float | None = Field(default=None, ge=0)
    delta: float | None = Field(default=None, ge=0)
    suppress: float | None = Field(default=None, ge=0)
    score: Literal["softmax", "sigmoid", "logits"] | None = None
    attack: float = Field(default=0.0, ge=0, le=255)
    framing: Literal["preset", "model"] = "preset"
    frame: Literal["auto", "image", "input"] = "auto"
    inclusive: bool | None = None  # boxes name their last pixel; absent: as the source writes them (COCO: no)
    alphas: tuple[float, ...] = ALPHAS
    thresholds: tuple[float, ...] = THRESHOLDS
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    speed: Literal["eager", "compile", "cuda_graphs"] = "eager"
    batch: int = Field(default=0, ge=0)


class GfiReportSection(Section):
    """What the page shows."""

    examples: int = Field(default=4, ge=1, le=20)  # images each of good, median and bad
    # The paper's numbers beside ours: true is Table 1, for VGG-19 on ILSVRC; "pointing" is for VOC 2007 test.
    paper: bool | Literal["pointing"] = False


class GfiConfig(JobConfig):
    """``raylens gfi``: see jobs/configs/gfi-vgg19-ilsvrc.yaml for a commented example."""

    model: Network
    data: GfiData
    gfi: GfiSection = GfiSection()
    iou: float = Field(default=0.5, gt=0, le=1)  # the overlap that counts
    report: GfiReportSection = GfiReportSection()

    @model_validator(mode="after")
    def _the_stage_agrees(self) -> GfiConfig:
        self.stage_config(Preprocess(frame=self.model.preprocess.frame))
        return self

    def stage_config(self, preprocess: Preprocess) -> StageConfig:
        """The stage's config for a network with this preprocessing."""
        fields = self.gfi.model_dump(exclude={"framing"})
        fields["inclusive"] = inclusive(self.gfi.inclusive, self.data.eval, self.data.tune)
        if self.gfi.preset == "authors" and self.gfi.framing == "preset":
            preprocess = dataclasses.replace(preprocess, frame="crop", resize=max(preprocess.size))
        return StageConfig(seed=self.seed, preprocess=preprocess, **fields)
