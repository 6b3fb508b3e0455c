"""The classifier job: the last layer of a network trained anew for the classes of a dataset, several to an image.

RUN/network.safetensors holds the whole network, to be named as the weights of any other job's model.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch

from jobs.classifier.config import ClassifierConfig, class_names
from jobs.classifier.train import STEP, ClassifierTrainer
from jobs.sections import source
from pipeline.engine import Outcome, execute
from pipeline.errors import UsageError
from pipeline.inputs import NetworkInput
from pipeline.models import load, preprocess_for
from pipeline.options import Options
from pipeline.run import Run
from pipeline.steps import Job, Source, Train
from stages.classifier.train import ClassifierTraining, last_linear
from stages.preprocess import Preprocess
from stages.training import TrainingConfig


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
    from jobs.classifier.report import write_report as write

    return write(run_url)
