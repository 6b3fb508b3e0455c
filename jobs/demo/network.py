"""The demo's network: a small VGG trained on the drawn scenes, shared by every method of the demo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from jobs.demo.scenes import CLASS_NAMES
from pipeline.learnt import Learnt, Trained
from pipeline.storage import Folder
from pipeline.train import Worker, train
from stages.preprocess import Preprocess
from stages.training import Progress, TensorData, TrainingConfig, fit, uniform

SIZE = 64  # pixels of a scene and of the network's input
PREPROCESS = Preprocess(size=(SIZE, SIZE), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SCENES = {"train": 2500, "tune": 300, "val": 500}
RECIPE = TrainingConfig(epochs=16, batch=16, optimizer="sgd", lr=0.05, warmup=0.15, schedule="one_cycle")
SMOOTHING = 0.05
WIDTHS = (16, "pool", 32, "pool", 64, 64, "pool", 128)


class SmallVGG(nn.Module):
    """3x3 convolutions, ReLU and max pooling, then the spatial mean and one linear layer.

    ``first_conv`` is ``features.1`` (a ReLU) and ``last_conv`` the last ReLU of ``features``, whose map is 8 x 8 for a
    64 x 64 input. With ``norm`` all convolutions but the first are followed by batch norm, for training; ``folded``
    gives the same function without it.
    """

    def __init__(self, num_classes: int = len(CLASS_NAMES), *, norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            # The first map is the largest by far: a norm there would cost a third of the training.
            normed = norm and channels != 3
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not normed))
            layers += [nn.BatchNorm2d(width)] if normed else []
            layers.append(nn.ReLU())
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        with torch.no_grad():
            # Spatial means differ little between images at first; small weights on them would waste the first epochs.
            self.classifier.weight.mul_(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    def folded(self) -> SmallVGG:
        """The network in eval mode with every batch norm folded into its convolution."""
        plain = SmallVGG(self.classifier.out_features).eval()
        layers: list[nn.Module] = []
        for layer in self.features:
            before = layers[-1] if layers else None
            if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                layers[-1] = nn.utils.fuse_conv_bn_eval(before.eval(), layer.eval())
            else:
                layers.append(layer)
        plain.load_state_dict(
            nn.ModuleDict({"features": nn.Sequential(*layers), "classifier": self.classifier}).state_dict()
        )
        return plain


def small_vgg(num_classes: int = len(CLASS_NAMES)) -> SmallVGG:
    """The plain network, as the demo's weights fit it: outputs are indexed as ``jobs.scenes.CLASS_NAMES``."""
    return SmallVGG(num_classes)


def load_scenes(instances: str | Path) -> TensorData:
    """The scenes of an annotation file: ``image`` uint8 [rows, 3, SIZE, SIZE], ``label`` int64 [rows]."""
    instances = Path(instances)
    folder = instances.parent / instances.stem.removeprefix("instances_")
    data = json.loads(instances.read_text())
    index = {category["id"]: number for number, category in enumerate(data["categories"])}
    entries = data["images"]
    pixels = np.empty((len(entries), 3, SIZE, SIZE), np.uint8)
    for row, entry in enumerate(entries):
        with Image.open(folder / entry["file_name"]) as image:
            pixels[row] = PREPROCESS.pixels(np.asarray(image.convert("RGB")))
    labels = torch.tensor([index[entry["label"]] for entry in entries])
    return TensorData([entry["file_name"] for entry in entries], image=torch.from_numpy(pixels), label=labels)


_ORDERS = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])


def vary(batch: Mapping[str, Tensor], seeds: np.ndarray) -> dict[str, Tensor]:
    """Mirrors, shifts by up to a tenth, exchanges colour channels, makes negatives: none of it changes the class."""
    draws = uniform(seeds, 5)
    image = batch["image"]
    rows, size, reach = torch.arange(len(image)), image.shape[-1], image.shape[-1] // 10
    mirrored = torch.from_numpy(draws[:, 0] < 0.5)
    shift = torch.from_numpy((draws[:, 1:3] * (2 * reach + 1)).astype(np.int64) - reach)
    at = torch.arange(size)
    y = (at + shift[:, :1]).clamp(0, size - 1)
    x = (at + shift[:, 1:]).clamp(0, size - 1)
    x = torch.where(mirrored[:, None], size - 1 - x, x)
    order = _ORDERS[torch.from_numpy((draws[:, 3] * len(_ORDERS)).astype(np.int64))]
    image = image[rows[:, None, None, None], order[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
    negative = torch.from_numpy(draws[:, 4] < 0.5).to(torch.uint8) * 255
    return {**batch, "image": image ^ negative[:, None, None, None]}


def classification_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    pixels = PREPROCESS.normalise(batch["image"]).contiguous(memory_format=torch.channels_last)
    return F.cross_entropy(model(pixels), batch["label"], label_smoothing=SMOOTHING)


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorData) -> float:
    """Share of the rows whose highest output is their label."""
    guesses = [model(PREPROCESS.normalise(part)).argmax(1) for part in data.tensors["image"].split(250)]
    return float((torch.cat(guesses) == data.tensors["label"]).double().mean())


def learn(instances: dict[str, str], recipe: TrainingConfig, worker: Worker) -> Learnt:
    """The training itself, on one worker: returns the folded network's weights, its history and its val accuracy."""
    data = {split: load_scenes(path) for split, path in instances.items()}
    torch.manual_seed(recipe.seed)
    model = SmallVGG(norm=True)

    def tell(progress: Progress) -> None:
        told = progress.metrics
        worker.log(
            f"epoch {progress.epoch}/{progress.epochs}: loss {told['loss']:.3f}, "
            f"tune accuracy {told['accuracy']:.3f} ({progress.seconds:.1f} s)"
        )

    history = fit(
        worker.wrap(model),
        data["train"],
        recipe,
        worker.checkpoints,
        loss=classification_loss,
        augment=vary,
        evaluate=lambda network: {"accuracy": accuracy(network, data["tune"])},
        progress=tell,
        device=worker.device,
        rank=worker.rank,
        world=worker.world,
    )
    network = model.cpu().folded()
    facts = {"history": history, "classes": list(CLASS_NAMES), "val_accuracy": accuracy(network, data["val"])}
    return Learnt({"network.safetensors": safetensors.torch.save(network.state_dict())}, facts)


def train_backbone(
    folder: Folder,
    instances: Mapping[str, Path],
    recipe: TrainingConfig = RECIPE,
    *,
    workers: int = 1,
    threads: int | None = None,
    log: Callable[[str], None] = print,
) -> Trained:
    """Trains the shared backbone in ``folder`` on drawn scenes (``write_scenes``'s paths); see ``pipeline.train``."""
    digests = {split: hashlib.sha256(path.read_bytes()).hexdigest() for split, path in instances.items()}
    function = partial(learn, {split: str(path) for split, path in instances.items()}, recipe)
    fingerprint = {**asdict(recipe), "widths": list(WIDTHS), "smoothing": SMOOTHING, "data": digests, "version": 1}
    return train(function, folder, fingerprint=fingerprint, workers=workers, threads=threads, log=log)


def backbone(trained: Trained) -> SmallVGG:
    """The trained network in eval mode: plain convolutions, no batch norm."""
    network = small_vgg(len(trained.facts["classes"]))
    network.load_state_dict(safetensors.torch.load(trained.files["network.safetensors"]))
    return network.eval()
