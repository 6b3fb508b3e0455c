"""What a user writes of a classifier job."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.config import JobConfig, LocationOrName, Section
from jobs.sections import Network, Split
from pipeline.errors import UsageError
from pipeline.sources.classes import read_classes


class ClassifierData(Section):
    """``train`` is learnt from; ``eval`` is only watched: average precision of each class is told of it."""

    train: Split
    eval: Split | None = None


class ClassifierTrainingSection(Section):
    """How to train; fields as in stages.training.TrainingConfig. The defaults are the paper's, epochs aside."""

    epochs: int = Field(default=20, ge=1)
    batch: int = Field(default=64, ge=1)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "constant"


class ClassifierConfig(JobConfig):
    """``raylens classifier``: see jobs/configs/classifier-voc07.yaml for a commented example."""

    model: Network  # as it was trained on other classes: all its layers but the last stay
    data: ClassifierData
    classes: LocationOrName | list[str] | None = None  # names by number; absent: those of the source
    training: ClassifierTrainingSection = ClassifierTrainingSection()
    skip_unreadable: bool = False  # leave images out that cannot be read, instead of stopping at the first


def class_names(config: ClassifierConfig) -> list[str]:
    given = config.classes if config.classes is not None else getattr(config.data.train, "classes", None)
    if given is None:
        raise UsageError("the source does not name its classes", where="classes", cure="list them, or name a file")
    return list(read_classes(given).names)
