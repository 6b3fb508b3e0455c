"""A network by name and its weights by torchvision's name, path or URL, with class names and preprocessing."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from pipeline import weights as files
from pipeline.architectures import (
    drop_auxiliary,
    entries,
    near_architectures,
    published_layout,
    require_architecture,
    user_function,
)
from pipeline.errors import UsageError
from pipeline.sources.classes import read_classes
from pipeline.vision import torchvision

_IMAGENET: dict[str, Any] = {
    "size": (224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "resize": None,
}

Triple = tuple[float, float, float]
Side = Annotated[int, Field(ge=8, le=8192)]
Positive = Annotated[float, Field(gt=0)]


class PreprocessSpec(BaseModel):
    """What differs from the weights' own preprocessing; the fields mean what ``Preprocess`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Side | tuple[Side, Side] | None = None  # (height, width)
    mean: Triple | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    frame: Literal["squash", "crop"] = "squash"
    resize: Side | None = None


class ModelSpec(BaseModel):
    """A network and its weights.

    ``name``: a torchvision classifier ("vgg16"), or ``module:function``, a function of the user's, importable from
    the working directory or PYTHONPATH, that returns an nn.Module; ``arguments`` are its keyword arguments.
    ``weights``: torchvision's name for them ("DEFAULT", "IMAGENET1K_V1"), or the path or URL of a .safetensors, .pth
    or .pt file, or null for what the function itself returns, for which random draws need a ``seed``.
    ``classes``: names in label order (a list or a file), else those of torchvision's weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    seed: int | None = None
    preprocess: PreprocessSpec = PreprocessSpec()
    classes: str | list[str] | None = None
    num_classes: Annotated[int | None, Field(ge=1)] = None
    max_download_gb: Annotated[float, Field(gt=0)] = 4.0

    @model_validator(mode="after")
    def _random_weights_are_asked_for(self) -> Self:
        if self.weights is None and self.seed is None:
            raise ValueError("weights: null means an untrained network; say so with a seed, or name weights")
        return self


@dataclass(frozen=True)
class Network:
    """A loaded network: eval mode, float32, frozen, on the CPU."""

    module: nn.Module
    classes: list[str] | None
    num_classes: int | None  # what the module puts out; None where it was not run
    preprocess: dict[str, Any]  # size (height, width), mean, std, frame, resize: the fields of Preprocess


def load(spec: ModelSpec, *, probe: bool = True) -> Network:
    """The network with its weights.

    ``probe`` runs it once on zeros, so that a network that puts out no logits [1, C], or another number of them than
    there are classes, is refused here. Raises UsageError naming the field or file and the cure.
    """
    preprocess = preprocess_for(spec)
    entry = _entry(spec)
    classes = class_names(spec)
    state = files.read_state(_weights_file(spec)) if spec.weights is not None else None
    module = _build(spec, entry, state, classes)
    if state is not None:
        files.fit(module, state, f"{spec.weights}", near_architectures(spec.name))
    drop_auxiliary(module, spec.name)
    module = module.float().eval().requires_grad_(False)
    count = None
    if probe:
        count = _probe(module, spec, preprocess["size"])
        wanted = spec.num_classes or (len(classes) if classes is not None else count)
        if wanted != count:
            raise UsageError(f"puts out {count} classes, {wanted} are named", where=spec.name, cure="correct classes")
    return Network(module, classes, count, preprocess)


def weights_digest(spec: ModelSpec) -> str:
    """sha256, hex, of what the network's numbers come from; equal on every machine and before and after a download.

    Of the file's content for paths and URLs; of the address for torchvision's weights, whose name carries a hash that
    is checked whenever they are loaded; of the network's own tensors where ``weights`` is null.
    """
    if spec.weights is not None and not files.is_file(spec.weights):
        return hashlib.sha256(_named_entry(spec).url.encode()).hexdigest()
    if spec.weights is not None:
        return files.sha256_file(_weights_file(spec))
    digest = hashlib.sha256()
    for name, tensor in sorted(_build(spec, None, None, class_names(spec)).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def preprocess_for(spec: ModelSpec) -> dict[str, Any]:
    """The preprocessing: the config's fields over the recipe of the weights, else of torchvision's first weights for
    that name, else ImageNet's 224 x 224. Needs no weights file."""
    recipe: dict[str, Any] = dict(_IMAGENET)
    entry = _entry(spec)
    if entry is None and ":" not in spec.name:
        entry = next(iter(entries(spec.name)), None)
    if entry is not None:
        preset = entry.transforms()
        crop = preset.crop_size * 2 if len(preset.crop_size) == 1 else preset.crop_size
        recipe = {"size": tuple(crop), "mean": tuple(preset.mean), "std": tuple(preset.std)}
        recipe["resize"] = max(preset.resize_size)
    given = spec.preprocess
    if given.size is not None:
        recipe["size"] = (given.size, given.size) if isinstance(given.size, int) else given.size
        recipe["resize"] = None  # it belongs to the recipe's own size
    asked = {"mean": given.mean, "std": given.std, "resize": given.resize}
    recipe.update({name: value for name, value in asked.items() if value is not None})
    return {**recipe, "frame": given.frame}


def class_names(spec: ModelSpec) -> list[str] | None:
    """Names in label order: the config's, else those of torchvision's weights; None where neither says."""
    if spec.classes is not None:
        return read_classes(spec.classes).names
    entry = _entry(spec)
    categories = entry.meta.get("categories") if entry is not None else None
    return list(categories) if categories else None


def _entry(spec: ModelSpec) -> Any:
    """torchvision's entry for these weights: named, or a file that has the name torchvision publishes it under."""
    if spec.weights is None:
        return None
    if not files.is_file(spec.weights):
        return _named_entry(spec)
    name = spec.weights.split("?")[0].rpartition("/")[2]
    return next((entry for entry in entries(spec.name) if entry.url.rpartition("/")[2] == name), None)


def _named_entry(spec: ModelSpec) -> Any:
    if ":" in spec.name:
        raise UsageError(
            f"weights: {spec.weights!r} is no file, and torchvision has none for {spec.name}",
            where="model",
            cure="name a .safetensors, .pth or .pt file",
        )
    require_architecture(spec.name)
    enum = torchvision.models.get_model_weights(spec.name)
    wanted = str(spec.weights).rpartition(".")[2]
    if wanted in enum.__members__:
        return enum[wanted]
    near = difflib.get_close_matches(wanted.upper(), enum.__members__, 1)
    names = ", ".join(enum.__members__)
    raise UsageError(
        f"weights: {spec.name} has no {spec.weights!r} (there are: {names})",
        where="model",
        cure=f"did you mean {near[0]}?" if near else "write one of them, or the path of a file",
    )


def _weights_file(spec: ModelSpec) -> str:
    limit = int(spec.max_download_gb * 2**30)
    if files.is_file(str(spec.weights)):
        return files.fetch(str(spec.weights), limit)
    return files.fetch(_named_entry(spec).url, limit, os.path.join(torch.hub.get_dir(), "checkpoints"))


def _build(
    spec: ModelSpec, entry: Any, state: Mapping[str, torch.Tensor] | None, classes: list[str] | None
) -> nn.Module:
    arguments = dict(spec.arguments)
    if ":" in spec.name:
        maker = user_function(spec.name)
    else:
        require_architecture(spec.name)
        if refused := {"weights", "pretrained", "weights_backbone"} & set(arguments):
            raise UsageError(f"arguments: {refused.pop()}", where="model", cure="use the field weights")
        maker = torchvision.models.get_model_builder(spec.name)
        number = spec.num_classes or (len(classes) if classes else None)
        if number is not None:
            arguments.setdefault("num_classes", number)
        arguments |= published_layout(spec.name, entry, state, arguments)
    try:
        # The caller's random state is not ours to move.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed or 0)
            module = maker(**arguments)
    except UsageError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{spec.name}(**{arguments}) fails: {text}", where="model", cure="correct arguments"
        ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{spec.name} returns {type(module).__name__}", where="model", cure="return an nn.Module")
    return module


def _probe(module: nn.Module, spec: ModelSpec, size: tuple[int, int]) -> int:
    try:
        with torch.no_grad():
            out = module(torch.zeros(1, 3, *size))
    except Exception as error:
        raise UsageError(
            f"cannot run on an image of {size[0]} x {size[1]}: {type(error).__name__}: {error}",
            where=spec.name,
            cure="correct preprocess.size",
        ) from error
    if not isinstance(out, torch.Tensor) or out.ndim != 2 or out.shape[0] != 1:
        shape = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise UsageError(f"puts out {shape}, not logits [1, classes]", where=spec.name, cure="use a classifier")
    return int(out.shape[1])
