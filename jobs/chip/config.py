"""What a user writes of a CHIP job: data, layers, the sweep, the fit, maps and boxes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jobs.config import JobConfig, Section
from jobs.sections import JudgedSplit, Network, Split
from stages.chip.localize import LocalizeConfig
from stages.chip.sweep import SweepConfig
from stages.metrics.boxes import THRESHOLDS
from stages.preprocess import Preprocess


class ChipData(Section):
    """Splits: the weights are fitted on ``fit``, thresholds chosen on ``tune``, errors measured on ``eval``.

    Without ``tune`` the thresholds are chosen on one half of ``eval`` and applied to the other, both ways.
    """

    fit: Split
    tune: JudgedSplit | None = None
    eval: JudgedSplit | None = None


class SweepSection(Section):
    """The perturbed networks; fields as in stages.chip.sweep.SweepConfig."""

    gates: int = Field(default=100, ge=1)
    classes: Literal["coverage", "all"] = "coverage"
    min_share: float = Field(default=0.01, ge=0, le=1)
    max_classes: int = Field(default=16, ge=1)
    output: Literal["softmax", "logits"] = "softmax"
    shared_gates: bool = False
    precision: Literal["network", "bfloat16", "float16"] = "network"
    draft: bool = False
    batch: int = Field(default=0, ge=0)


class SolveSection(Section):
    """The sparse fit; fields as in stages.chip.solve.SolveConfig. ``sigma2`` absent means K/4."""

    sigma2: float | None = Field(default=None, gt=0)
    holdout: float = Field(default=0.2, ge=0, lt=1)
    lambda_rel: float = Field(default=0.01, ge=0)
    path: int = Field(default=20, ge=0)
    choose: bool = False  # take the lambda of the path with the best held-out R^2 instead of lambda_rel
    solver: Literal["admm", "newton"] = "admm"
    rho_rel: float | None = Field(default=None, gt=0)
    classes: list[int] | None = None


class LocalizeSection(Section):
    """Maps and the boxes drawn from them; fields as in stages.chip.localize.LocalizeConfig."""

    methods: tuple[str, ...] = ("chip", "refined_chip", "grad_cam", "gradient")
    thresholds: tuple[float, ...] = THRESHOLDS
    signed: bool = False
    frame: Literal["auto", "image", "input"] = "auto"
    inclusive: bool | None = None  # boxes name their last pixel; absent: as the source writes them (COCO: no)
    iou: float = Field(default=0.5, gt=0, le=1)
    batch: int = Field(default=0, ge=0)


class ReportSection(Section):
    """What the page shows."""

    classes: tuple[int, ...] = ()  # of the heatmap; empty: those with the most images
    venn: tuple[tuple[int, ...], ...] = ()  # groups of two or three classes; empty: neighbours in the heatmap
    examples: int = Field(default=4, ge=1, le=20)  # images each of good, median and bad
    paper: bool = False  # put the paper's Table II beside ours: only for VGG16 on ILSVRC


class ChipConfig(JobConfig):
    """``raylens chip``: see jobs/configs/chip-folder.yaml for a commented example."""

    model: Network
    data: ChipData
    layers: tuple[str, ...] = ("first_conv", "last_conv")
    sweep: SweepSection = SweepSection()
    solve: SolveSection = SolveSection()
    localize: LocalizeSection = LocalizeSection()
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _methods_have_their_layers(self) -> ChipConfig:
        self.sweep_config(Preprocess())
        try:
            if self.data.eval is not None:
                LocalizeConfig(methods=self.localize.methods, layers=self.layers, thresholds=self.localize.thresholds)
        except LookupError as error:
            raise ValueError(str(error.args[0])) from error
        return self

    def sweep_config(self, preprocess: Preprocess) -> SweepConfig:
        fields = self.sweep.model_dump()
        return SweepConfig(layers=self.layers, seed=self.seed, preprocess=preprocess, **fields)
