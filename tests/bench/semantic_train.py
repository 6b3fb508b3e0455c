"""Training speed of the two-level network on ResNet34 at 224 x 224: images per second, augmentation included.

    python tests/bench/semantic_train.py [--quick] [--batch 256] [--precision bf16] [--steps 40]

With a GPU: bf16, batch 256, the loop of `stages.training.fit` on drawn uint8 images of 256 x 256 from memory (decoding
JPEGs is measured by decode.py), random crops on the device, the whole network trained. Without one: float32, batch 16,
few steps, so that the same code is timed; the number then says nothing about a GPU. Needs torch and torchvision only.
The first steps warm up and are not counted. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from pipeline.vision import torchvision
from stages.semantic.labels import targets
from stages.semantic.network import TwoLevelConfig
from stages.semantic.train import RECIPE, TwoLevelTraining, train_two_level
from stages.training import Progress, TensorData

FINE, COARSE = 80, 11


class Drawn(TensorData):
    """``images`` rows over a few drawn images."""

    def __init__(self, images: int, size: int) -> None:
        generator = np.random.default_rng(0)
        self.pixels = torch.from_numpy(generator.integers(0, 256, (512, 3, size, size), dtype=np.uint8))
        fine = [sorted(generator.choice(FINE, int(generator.integers(1, 4)), replace=False)) for _ in range(images)]
        super().__init__([str(i) for i in range(images)], **targets(fine, [f[0] % COARSE for f in fine], FINE, COARSE))

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return super().batch(rows) | {"image": self.pixels[torch.from_numpy(rows % len(self.pixels))]}


def measured(batch: int, steps: int, precision: str, device: torch.device) -> float:
    """Images per second of an epoch of ``steps`` steps that follows a warm-up epoch."""
    backbone = torchvision.models.resnet34(weights=None).eval().to(device)
    recipe = replace(RECIPE, epochs=2, batch=batch, precision=precision, lr=1e-4)
    config = TwoLevelTraining(TwoLevelConfig(FINE, COARSE), recipe)
    ends: list[float] = []

    def told(_: Progress) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())

    data = Drawn(batch * steps, config.train_frame.size[0])
    train_two_level(backbone, {"train": data}, config, device=device, progress=told)
    return batch * steps / (ends[1] - ends[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two steps of a small batch: does it run?")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--precision", choices=["float32", "bf16", "fp16"])
    chosen = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    batch = chosen.batch or (8 if chosen.quick else 256 if gpu else 16)
    steps = chosen.steps or (2 if chosen.quick else 40 if gpu else 6)
    precision = chosen.precision or ("bf16" if gpu else "float32")
    if not gpu:
        print("no GPU here: timing the same code on the CPU; with one it would time bf16 at batch 256")
    found = {
        "bench": "semantic_train",
        "images_per_s": round(measured(batch, steps, precision, device), 2),
        "device": torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads",
        "precision": precision,
        "batch": batch,
        "steps": steps,
        "network": "resnet34, 224 x 224, fine and coarse heads, random crops and mirrors",
        "quick": chosen.quick,
        "torch": torch.__version__,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
