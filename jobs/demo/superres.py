"""The demo's super-resolution network: trained on the drawn scenes, then taken apart pixel by pixel beside bicubic."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs import linear
from jobs.config import check
from jobs.demo.network import load_scenes
from pipeline.learnt import Learnt, Trained
from pipeline.storage import Folder
from pipeline.train import Worker, train
from stages.linear.image_input import LUMINANCE
from stages.linear.networks.bicubic import bicubic
from stages.linear.networks.pixelshuffle import pixel_shuffle
from stages.training import TensorData, TrainingConfig, fit

WIDTH = 16
TRAINED_ON, JUDGED_ON = 800, 100  # scenes
RECIPE = TrainingConfig(epochs=8, batch=8, optimizer="adamw", lr=0.02, weight_decay=0.0, warmup=0.2, clip=0.5)
SIZE = 16  # pixels of the input that is explored
SHOWN, FULL_SHOWN = 4, 12
TRIPLETS = 4  # of the full demo


def luminance(images: Tensor) -> Tensor:
    """uint8 (B, 3, h, w) -> float32 (B, 1, h, w) in 0..1."""
    weights = torch.tensor(LUMINANCE).view(1, 3, 1, 1)
    return (images.float() / 255 * weights).sum(dim=1, keepdim=True)


def halved(images: Tensor) -> Tensor:
    """By a bicubic filter that averages: what the network learns to undo."""
    return F.interpolate(images, scale_factor=0.5, mode="bicubic", antialias=True, align_corners=False)


def squared_error(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    truth = luminance(batch["image"])
    return F.mse_loss(model(halved(truth)), truth)


@torch.no_grad()
def psnr(model: nn.Module, data: TensorData) -> float:
    """dB, the mean over scenes; 2 pixels of the border do not count."""
    truth = luminance(data.tensors["image"])
    error = (model(halved(truth)).clamp(0, 1) - truth)[..., 2:-2, 2:-2].square().mean(dim=(1, 2, 3))
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


def learn(instances: dict[str, str], recipe: TrainingConfig, worker: Worker) -> Learnt:
    """The training itself, on one worker; facts tell its PSNR on scenes it never saw, and bicubic's."""
    seen, unseen = (_first(load_scenes(instances[s]), n) for s, n in (("train", TRAINED_ON), ("val", JUDGED_ON)))
    torch.manual_seed(recipe.seed)
    model = pixel_shuffle(2, WIDTH)
    history = fit(
        worker.wrap(model),
        seen,
        recipe,
        worker.checkpoints,
        loss=squared_error,
        device=worker.device,
        rank=worker.rank,
        world=worker.world,
    )
    model = model.cpu().eval()
    facts = {"history": history, "psnr": psnr(model, unseen), "bicubic": psnr(bicubic(2), unseen)}
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}  # training's may lie otherwise
    return Learnt({"network.safetensors": safetensors.torch.save(state)}, facts)


def _first(data: TensorData, count: int) -> TensorData:
    rows = np.arange(min(count, len(data)))
    return TensorData(data.keys(rows), **data.batch(rows))


def train_network(
    folder: Folder,
    instances: Mapping[str, Path],
    recipe: TrainingConfig = RECIPE,
    *,
    threads: int | None = None,
    log: Callable[[str], None] = print,
) -> Trained:
    """In ``folder``, on drawn scenes (``write_scenes``'s paths); network.safetensors lies there afterwards."""
    digests = {split: hashlib.sha256(path.read_bytes()).hexdigest() for split, path in instances.items()}
    function = partial(learn, {split: str(path) for split, path in instances.items()}, recipe)
    fingerprint = {**asdict(recipe), "width": WIDTH, "scenes": TRAINED_ON, "data": digests, "version": 1}
    trained = train(function, folder, fingerprint=fingerprint, workers=0, threads=threads, log=log)
    folder.write("network.safetensors", trained.files["network.safetensors"])
    return trained


def filters_config(root: Path, *, full: bool = False) -> linear.LinearConfig:
    """Rows and columns of the network and of bicubic: what a user would write in YAML."""
    module = "stages.linear.networks"
    values: dict[str, Any] = {
        "task": "filters",
        "networks": {
            "bicubic": {"name": f"{module}.bicubic:bicubic", "arguments": {"scale": 2}, "seed": 0},
            "trained": {
                "name": f"{module}.pixelshuffle:pixel_shuffle",
                "arguments": {"scale": 2, "width": WIDTH},
                "weights": str(root / "enlarging/network.safetensors"),
            },
        },
        "data": {
            "images": {
                "kind": "coco",
                "annotations": str(root / "scenes/instances_val.json"),
                "images": str(root / "scenes/val"),
                "sample": FULL_SHOWN if full else SHOWN,
            }
        },
        "filters": {"size": SIZE, "frame": "squash", "svd": TRIPLETS if full else 0},
    }
    return check(linear.LinearConfig, values, where="demo")


def enlarged(
    root: Path,
    instances: Mapping[str, Path],
    threads: int,
    say: Callable[[str], None],
    *,
    full: bool = False,
) -> int:
    """RUN/enlarging: the network. RUN/filters: what each of its pixels reads and writes, with a page to explore."""
    facts = train_network(Folder(str(root / "enlarging")), instances, threads=threads, log=say).facts
    gain = facts["psnr"] - facts["bicubic"]
    say(f"scenes enlarged twice: {facts['psnr']:.1f} dB, {gain:+.1f} against bicubic, on {JUDGED_ON} it never saw")
    config = filters_config(root, full=full)
    return linear.run(config, str(root / "filters"), config.options(say=say)).exit_code
