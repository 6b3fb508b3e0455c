"""The classifier job: the last layer of a network trained anew for the classes of a dataset, several to an image.

RUN/network.safetensors holds the whole network, to be named as the weights of any other job's model.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from jobs.config import JobConfig, LocationOrName, Section
from jobs.sections import Network, Split, source
from jobs.training_images import KeyTablePixels
from jobs.training_screen import unreadable
from pipeline.checkpoints import read_one
from pipeline.engine import Outcome, execute
from pipeline.errors import UsageError
from pipeline.images import Limits
from pipeline.inputs import NetworkInput
from pipeline.learnt import Learnt
from pipeline.models import load, preprocess_for
from pipeline.options import Options
from pipeline.provenance import cpu_count
from pipeline.run import KeyTable, Run
from pipeline.sources.classes import read_classes
from pipeline.steps import Job, Source, Train
from pipeline.train import Worker
from stages.classifier.train import ClassifierTraining, last_linear, train_last_layer
from stages.preprocess import Preprocess
from stages.training import TrainingConfig
from stages.training_data import Subset

STEP = "learn"


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


def build(config: ClassifierConfig) -> Job:
    """The job's graph. Loads the network once, to know that its classes are those of a linear layer."""
    loaded = load(config.model)
    preprocess = Preprocess(**preprocess_for(config.model))
    try:
        with torch.no_grad():
            last_linear(loaded.module, torch.zeros(1, 3, *preprocess.size))
    except ValueError as error:
        raise UsageError(str(error), where="model", cure="name another network") from error
    count = len(class_names(config))
    training = ClassifierTraining(
        classes=count,
        training=TrainingConfig(seed=config.seed, **config.training.model_dump()),
        preprocess=preprocess,
    )
    sources = {"train": _labelled(config.data.train, "train", count)}
    if config.data.eval is not None:
        sources["tune"] = _labelled(config.data.eval, "eval", count)
    trainer = ClassifierTrainer(training, config.skip_unreadable)
    step = Train(STEP, trainer, tuple(sources), {"network": NetworkInput(config.model)})
    return Job("classifier", config.model_dump(mode="json"), sources, (step,), limits=config.images)


def class_names(config: ClassifierConfig) -> list[str]:
    given = config.classes if config.classes is not None else getattr(config.data.train, "classes", None)
    if given is None:
        raise UsageError("the source does not name its classes", where="classes", cure="list them, or name a file")
    return list(read_classes(given).names)


def _labelled(split: Any, name: str, classes: int) -> Source:
    """The split with a column ``learnt``: all classes of each image.

    An image whose label nobody gave is left out; one with an empty list of labels shows none of the classes.
    """
    found = source(split, name, classes)

    def listed() -> pa.Table:
        table = found.list()
        ones = table["label"].to_pylist() if "label" in table.column_names else [None] * len(table)
        several = table["labels"].to_pylist() if "labels" in table.column_names else [None] * len(table)
        known = [m is not None or o is not None for m, o in zip(several, ones, strict=True)]
        all_of = [
            sorted(set(m or ([] if o is None else [o])))
            for m, o, there in zip(several, ones, known, strict=True)
            if there
        ]
        if not any(all_of):
            raise UsageError("no image has a label", where=f"data.{name}", cure="give a labelled source")
        return table.filter(pa.array(known)).append_column("learnt", pa.array(all_of, pa.list_(pa.int32())))

    return Source(found.description, listed)


class LabelledImages(KeyTablePixels):
    """Images of a key table with ``labels``, uint8 multi-hot [B, classes]."""

    def __init__(
        self, keys: KeyTable, frame: Preprocess, limits: Limits, pool: ThreadPoolExecutor, classes: int
    ) -> None:
        super().__init__(keys, frame, limits, pool)
        self._labels = torch.zeros(len(self), classes, dtype=torch.uint8)
        for row, mine in enumerate(keys.table().column("learnt").to_pylist()):
            self._labels[row, mine] = 1

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return super().batch(rows) | {"labels": self._labels[torch.from_numpy(np.ascontiguousarray(rows))]}


@dataclass(frozen=True)
class ClassifierTrainer:
    """``config``'s training on the splits "train" and "tune", from the input "network"."""

    config: ClassifierTraining
    skip_unreadable: bool = False
    version: int = 1

    def __call__(self, worker: Worker) -> Learnt:
        config = self.config
        with ThreadPoolExecutor(max(1, cpu_count() // worker.local_world)) as pool:
            data: dict[str, Any] = {
                split: LabelledImages(keys, config.preprocess, worker.limits, pool, config.classes)
                for split, keys in worker.keys.items()
            }
            left_out = unreadable(worker, data) if self.skip_unreadable else {}
            for split, bad in left_out.items():
                if bad:
                    worker.log(f"{len(bad)} of {len(data[split])} images of {split} cannot be read: left out")
                    keys = enumerate(data[split].keys(np.arange(len(data[split]))))
                    data[split] = Subset(data[split], np.array([row for row, key in keys if key not in bad]))
            files, facts = train_last_layer(
                worker.inputs["network"],
                data,
                config,
                worker.checkpoints,
                device=worker.device,
                wrap=worker.wrap,
                rank=worker.rank,
                world=worker.world,
                progress=worker.tell,
            )
        return Learnt(files, facts | {"unreadable": left_out})


def run(config: ClassifierConfig, run_url: str, options: Options | None = None) -> Outcome:
    """Train, unless that is done; write the network where other configs can name it, and the report."""
    options = options or config.options()
    outcome = execute(build(config), run_url, options)
    if not options.only:
        options.say(f"report {write_report(run_url)}")
        options.say(f"weights {Run(run_url).folder.path('network.safetensors')}")
    return outcome


def write_report(run_url: str) -> str:
    """Write the report of a run (and its network, from where it was learnt); returns where."""
    from jobs.classifier_report import write_report as write

    return write(run_url)


def learnt(run: Run) -> tuple[dict[str, Any], bytes] | None:
    """Facts and weights of the run's training; None while it is not finished."""
    folder = run.step_folder(STEP).child("result")
    told, weights = read_one(folder, "facts.json"), read_one(folder, "network.safetensors")
    return None if told is None or weights is None else (json.loads(told), weights)
