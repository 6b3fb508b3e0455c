"""What a user writes of a comparison: methods, images, and what they are measured by."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from jobs.compare.masks import Masks
from jobs.config import JobConfig, Location, Section
from jobs.sections import JudgedSplit, Network, inclusive
from pipeline.sources.classes import Classes, read_classes
from stages.baselines.asking import Asked
from stages.baselines.compare import CompareConfig
from stages.metrics.boxes import THRESHOLDS
from stages.metrics.mean_boxes import ALPHAS

METHODS = ("gradient", "guided_backprop", "grad_cam", "guided_grad_cam", "c_mwp", "lrp")

Papers = Literal["chip-table-2", "gfi-table-1", "gfi-pointing"]


class CompareData(Section):
    """Everything is reported on ``eval``; thresholds are chosen on ``tune``, or on halves of ``eval`` for each other.

    ``masks`` are PNG files beside the images of ``eval``; sources that have masks of their own (COCO) need none.
    """

    eval: JudgedSplit
    tune: JudgedSplit | None = None
    masks: Masks | None = None
    tune_masks: Masks | None = None


class MeasureSection(Section):
    """What is measured; fields as in stages.baselines.compare.CompareConfig.

    ``deletion_steps`` and ``attack`` (FGSM's epsilon for pixels in 0..1) cost passes, so they are 0, off, unless asked.
    """

    asks: Asked = "label"
    most: int = Field(default=8, ge=1)
    any_object: bool = False
    thresholds: tuple[float, ...] = THRESHOLDS
    alphas: tuple[float, ...] = ALPHAS
    frame: Literal["auto", "image", "input"] = "auto"
    inclusive: bool | None = None  # boxes name their last pixel; absent: as the source writes them (COCO: no)
    iou: float = Field(default=0.5, gt=0, le=1)
    signed: bool = False
    output: Literal["logits", "softmax"] = "logits"
    deletion_steps: int = Field(default=0, ge=0)
    attack: float = Field(default=0.0, ge=0, lt=1)
    speed_images: int = Field(default=16, ge=0)  # 0: no method is timed
    batch: int = Field(default=0, ge=0)


class CompareReport(Section):
    """What the page shows."""

    examples: int = Field(default=8, ge=0, le=40)
    keys: tuple[str, ...] = ()  # these images instead of examples spread over the table
    classes: int = Field(default=20, ge=0)  # rows of the breakdown by class: those with the most images
    papers: tuple[Papers, ...] = ()  # tables of the papers, where the dataset is theirs


class CompareJobConfig(JobConfig):
    """``raylens compare``: see jobs/configs/compare-ilsvrc.yaml for a commented example."""

    model: Network
    data: CompareData
    methods: tuple[str, ...] = METHODS
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)  # of methods, by name: {lime: {samples: 500}}
    layers: tuple[str, ...] | None = None  # absent: those of the CHIP run, else first_conv and last_conv
    chip: Location | None = None  # a solved CHIP run, for chip, refined_chip and guided_chip
    objects: Location | dict[str | int, Any] | None = None  # a YAML file, or what it would hold
    measure: MeasureSection = MeasureSection()
    report: CompareReport = CompareReport()

    @property
    def inclusive(self) -> bool:
        """Whether boxes name their last pixel: as the sources write them, and as they are drawn around index masks."""
        given = ((self.data.eval, self.data.masks), (self.data.tune, self.data.tune_masks))
        own = [split for split, masks in given if masks is None or masks.kind != "index"]
        return inclusive(self.measure.inclusive, *own)

    @model_validator(mode="after")
    def _methods_can_be_built(self) -> CompareJobConfig:
        needs = [m for m in self.methods if m.partition(":")[0] in ("chip", "refined_chip", "guided_chip")]
        if needs and self.chip is None:
            raise ValueError(f"{', '.join(needs)} take channel weights from a solved CHIP run: name it as chip: RUN")
        try:
            CompareConfig(
                methods=self.methods, options=self.parameters, layers=self.layers or ("first_conv", "last_conv")
            )
        except LookupError as error:
            raise ValueError(str(error.args[0])) from error
        return self


def truth_classes(config: CompareJobConfig) -> Classes | None:
    """Names of the classes that boxes and masks have."""
    if config.data.masks is not None and config.data.masks.classes is not None:
        return config.data.masks.named()
    names = getattr(config.data.eval, "classes", None)
    return None if names is None else read_classes(names)
