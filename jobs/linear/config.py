"""What a user writes of a linear job: the task, the networks, the images, and how they are asked."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from jobs.config import JobConfig, Section
from jobs.sections import Network, Split
from stages.linear.image_input import Colour

Side = Annotated[int, Field(ge=4, le=2048)]


class SystemSection(Section):
    """The system that is asked, the same for all networks side by side.

    ``size``, ``colour`` (in 0..1) and ``frame`` make the input; ``taylor`` freezes sigmoid and tanh by their tangent
    instead of h(x0) / x0, which is large wherever x0 is near 0. ``max_gb``: a run that would write more is refused
    unless --yes is given.
    """

    size: Side | tuple[Side, Side] = 64  # or (height, width)
    colour: Colour = "luminance"
    frame: Literal["crop", "squash"] = "crop"
    taylor: bool = False
    max_gb: float = Field(default=20.0, gt=0)


class FiltersSection(SystemSection):
    """Which rows and columns are kept.

    ``places``: ``all``, a ``grid`` of so many along each axis with whole-image patches, or ``auto``: all where the
    receptive field is bounded. ``svd``: so many singular triplets beside them, as the section svd says.
    """

    places: Literal["auto", "all", "grid"] = "auto"
    grid: int = Field(default=8, ge=1)
    svd: int = Field(default=0, ge=0)
    precision: Literal["float32", "float64"] = "float32"  # of the computation; float32 is kept
    masks: Literal["auto", "keep", "stream"] = "auto"
    batch: int = Field(default=0, ge=0)  # probes in one pass; 0: chosen by the device


class SvdSection(SystemSection):
    """Leading singular triplets; fields as in stages.linear.svd_stage.SvdConfig."""

    k: int = Field(default=10, ge=1)
    method: Literal["block", "power"] = "block"
    tolerance: float = Field(default=1e-6, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    limit: int = Field(default=0, ge=0)
    precision: Literal["float32", "float64"] = "float64"
    masks: Literal["auto", "keep", "stream"] = "auto"


class ClassifySection(Section):
    """What is explained of a classifier, and how.

    ``target``: the class that is explained: the predicted one (of the image as the network sees it, so after an
    attack), the image's label, or a class id. ``attack``: FGSM in grey levels of 255 against the label (against the
    prediction where there is none), beside the clean image; 0: none.
    """

    target: Literal["predicted", "label"] | Annotated[int, Field(ge=0)] = "predicted"
    attack: float = Field(default=0.0, ge=0, le=255)
    precision: Literal["float32", "float64"] = "float32"
    batch: int = Field(default=0, ge=0)  # images in one pass; 0: chosen by the device
    # Of votes: classes that take part, the likeliest first (0: all), classes in one pass, eq. 18's readings, and how
    # many of the classes with most votes are kept by name.
    classes: int = Field(default=0, ge=0)
    chunk: int = Field(default=16, ge=1)
    bias: Literal["class", "literal"] = "class"
    scaling: Literal["total", "bias", "shift", "none"] = "total"
    top: int = Field(default=5, ge=1)


Task = Literal["residual", "layers", "votes", "filters", "svd"]

CLASSIFY = ("residual", "layers", "votes")


class LinearData(Section):
    """The images that are interpreted."""

    images: Split


class LinearReportSection(Section):
    """What the page of residual, layers and votes shows."""

    examples: int = Field(default=4, ge=0, le=30)  # images with their votes
    paper: bool = False  # the paper's Tables 3 and 4 beside ours: for torchvision's weights on ILSVRC


class LinearConfig(JobConfig):
    """``raylens linear``: see jobs/configs/linear-residual-ilsvrc.yaml for a commented example."""

    task: Task
    networks: dict[str, Network] = Field(min_length=1)  # the name shown -> the network
    data: LinearData
    classify: ClassifySection = ClassifySection()  # of residual, layers and votes
    filters: FiltersSection = FiltersSection()
    svd: SvdSection = SvdSection()  # its method serves filters.svd too
    report: LinearReportSection = LinearReportSection()

    @field_validator("networks")
    @classmethod
    def _names_are_those_of_folders(cls, value: dict[str, Network]) -> dict[str, Network]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                raise ValueError(f"'{name}' names a folder too: use letters, digits, '.', '_' and '-', at most 64")
        return value
