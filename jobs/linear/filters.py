"""The linear job's tasks on image-to-image networks: rows and columns (filters) and singular triplets (svd)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from jobs.linear.config import FiltersSection, LinearConfig, SystemSection
from pipeline.errors import UsageError
from pipeline.inputs import NetworkInput
from pipeline.models import ModelSpec, load
from pipeline.steps import Measure, Step
from stages.linear.filter_sizes import FilterSizes, TripletSizes, filter_sizes
from stages.linear.filters_stage import FiltersConfig, FiltersStage
from stages.linear.image_input import ImageInput
from stages.linear.scope import freeze
from stages.linear.svd_stage import SvdConfig, SvdStage
from stages.preprocess import Preprocess


def steps(config: LinearConfig) -> tuple[Step, ...]:
    """For each network a measuring step ``filters_<name>``, and ``svd_<name>`` where triplets are asked for.

    Loads and freezes every network once. UsageError: it takes no such image, gives none, has a call that cannot be
    frozen, or fewer singular values than are asked for.
    """
    return tuple(step for name in config.networks for step in _steps_of(config, name))


def _steps_of(config: LinearConfig, name: str) -> Iterator[Step]:
    spec, filters = config.networks[name], config.filters
    section: SystemSection = filters if config.task == "filters" else config.svd
    image = _image(section, spec, name)
    sizes = _inspect(spec, name, image, filters, config.task)
    inputs = {"network": NetworkInput(spec)}
    if config.task == "filters":
        fields = filters.model_dump(include={"places", "grid", "taylor", "precision", "masks", "batch"})
        yield Measure(f"filters_{name}", FiltersStage(FiltersConfig(image, **fields), sizes), ("images",), inputs)
    k = filters.svd if config.task == "filters" else config.svd.k
    if k == 0:
        return
    most = min(math.prod(sizes.input), math.prod(sizes.output))
    if k > most:
        raise UsageError(
            f"{name} has {most:,} singular values at this size, {k:,} are asked for",
            where="filters.svd" if config.task == "filters" else "svd.k",
            cure=f"ask for {most:,} or fewer, or give larger images (size)",
        )
    own = config.svd.model_dump(exclude={*SystemSection.model_fields, "k"})
    asked = SvdConfig(image, section.taylor, k, seed=config.seed, **own)
    yield Measure(f"svd_{name}", SvdStage(asked, TripletSizes(sizes.input, sizes.output, k)), ("images",), inputs)


def _image(section: SystemSection, spec: ModelSpec, name: str) -> ImageInput:
    given = spec.preprocess
    own = given.model_fields_set - {"mean", "std"}
    if own:
        raise UsageError(
            f"preprocess.{sorted(own)[0]} is for one network, but all of them get the same image here",
            where=f"networks.{name}",
            cure="leave it out; set size, colour and frame in the task's section",
        )
    size = section.size if isinstance(section.size, tuple) else (section.size, section.size)
    mean, std = given.mean or (0.0, 0.0, 0.0), given.std or (1.0, 1.0, 1.0)
    return ImageInput(Preprocess(size=size, mean=mean, std=std, frame=section.frame), section.colour)


def _inspect(spec: ModelSpec, name: str, image: ImageInput, filters: FiltersSection, task: str) -> FilterSizes:
    module = load(spec, probe=False).module
    where = f"networks.{name} ({spec.name})"
    _refuse_wrong_colour(module, image, where, task)
    try:
        with torch.no_grad():
            return filter_sizes(freeze(module, torch.zeros(1, *image.shape)), filters.places, filters.grid)
    except ValueError as error:
        raise UsageError(str(error.args[0]), where=where, cure=_cure(error)) from error


def _cure(error: ValueError) -> str:
    # Refusals of calls name their cure themselves.
    is_classifier = "which is no image" in str(error)
    return "tasks residual, layers and votes are for classifiers; this one needs images out" if is_classifier else ""


def _refuse_wrong_colour(module: torch.nn.Module, image: ImageInput, where: str, task: str) -> None:
    """Most often a network of the other colours: then that is the cure."""

    def fault(channels: int) -> Exception | None:
        try:
            with torch.no_grad():
                module(torch.zeros(1, channels, *image.shape[1:]))
        except Exception as error:  # noqa: BLE001 - whatever a user's forward raises is told the same way
            return error
        return None

    error = fault(image.shape[0])
    if error is None:
        return
    other = "rgb" if image.colour == "luminance" else "luminance"
    fits = fault(4 - image.shape[0]) is None
    size = " x ".join(map(str, image.shape[1:]))
    raise UsageError(
        f"cannot run on a {image.colour} image of {size}: {type(error).__name__}: {error}",
        where=where,
        cure=f"set {task}.colour: {other}" if fits else f"correct {task}.size or {task}.colour, or the network",
    ) from error
