"""The linear job's tasks on classifiers: residual shares, contributions of layers, and the votes of pixels."""

from __future__ import annotations

import dataclasses

import torch

from jobs.linear.config import LinearConfig
from pipeline.errors import UsageError
from pipeline.inputs import NetworkInput
from pipeline.models import load
from pipeline.steps import Measure, Reduce, Reduction, Stage, Step
from stages.linear.classifier import View
from stages.linear.contributions import Contributing
from stages.linear.contributions_stage import ContributionsConfig, ContributionsStage
from stages.linear.elections import Elections, ElectionsConfig
from stages.linear.scope import freeze
from stages.linear.shares import Shares, SharesConfig
from stages.linear.votes_stage import VotesConfig, VotesStage
from stages.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Found:
    """A network as the config names it: how images are framed, and its classes."""

    preprocess: Preprocess
    classes: int


def inspect(config: LinearConfig) -> dict[str, Found]:
    """Loads and freezes every network once; UsageError names a call that cannot be frozen, and what to do."""
    found = {}
    for name, spec in config.networks.items():
        network = load(spec)
        assert network.num_classes is not None
        preprocess = Preprocess(**network.preprocess)
        try:
            Contributing(freeze(network.module, torch.zeros(1, 3, *preprocess.size)))
        except ValueError as error:
            raise UsageError(str(error), where=f"networks.{name} ({spec.name})") from error
        target = config.classify.target
        if isinstance(target, int) and target >= network.num_classes:
            raise UsageError(
                f"target {target} is no class of {name}",
                where="classify.target",
                cure=f"its classes are 0 to {network.num_classes - 1}",
            )
        found[name] = Found(preprocess, network.num_classes)
    return found


def label_limit(config: LinearConfig, found: dict[str, Found]) -> int | None:
    """Labels at or above it are refused; None where labels are not read."""
    reads = config.classify.target == "label" or config.classify.attack > 0
    return min(f.classes for f in found.values()) if reads else None


def steps(config: LinearConfig, found: dict[str, Found]) -> tuple[Step, ...]:
    """For each network a measuring step named ``<task>_<name>``, and what is said of all its images."""
    asked = config.classify
    made: list[Step] = []
    for name, spec in config.networks.items():
        view = View(asked.attack, asked.precision, found[name].preprocess)
        stage: Stage
        reduction: Reduction
        if config.task == "votes":
            votes = {field: getattr(asked, field) for field in ("classes", "bias", "scaling", "top", "chunk", "batch")}
            stage = VotesStage(VotesConfig(view, **votes))
            reduction = Elections(ElectionsConfig(asked.attack > 0))
        else:
            stage = ContributionsStage(ContributionsConfig(asked.target, view, asked.batch))
            reduction = Shares(SharesConfig(asked.attack > 0))
        measured = f"{config.task}_{name}"
        made.append(Measure(measured, stage, ("images",), {"network": NetworkInput(spec)}))
        made.append(Reduce(f"summary_{name}", reduction, measured, label=config.label))
    return tuple(made)
