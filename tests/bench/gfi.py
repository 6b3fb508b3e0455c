"""How fast guided feature inversion is, beside the authors' loop on the same network, images and steps. Needs no Ray.

    python tests/bench/gfi.py [--quick] [--threads 2] [--batch 8] [--compile]

*loop* works as the released code does: one image, three whole forwards a step, parameters that require gradients, a
Python loop over the channels. It is timed over a few steps of either stage and scaled to 11 + 69, as ours is; they take
turns, so that outside load falls on both. ``--flat`` runs many images and watches the memory; ``--spread`` says how far
single precision carries an image from itself (RAYLENS_TEST_DATA names the data). On a GPU: VGG-19, images a second and
the share of the measured matmul peak, and how well masks in bfloat16 agree with float32. The last line is JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.gfi.background import blurred
from stages.gfi.explainer import Explainer, Precision
from stages.gfi.optimise import explain, invert
from stages.gfi.recipe import recipe


def build(name: str) -> nn.Module:
    from pipeline.vision import torchvision

    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None).eval()


def images(count: int, device: torch.device) -> torch.Tensor:
    """Smooth random images: [count, 3, 224, 224]."""
    coarse = torch.randn(count, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(224, 224), mode="bicubic", align_corners=False).to(device)


class Loop:
    """One image, as the released code treats it."""

    def __init__(self, network: nn.Module, layer: nn.Module, x: torch.Tensor) -> None:
        self.network, self.x, self.blur = network.requires_grad_(True), x, blurred(x)
        self.seen: list[torch.Tensor] = []
        self.handle = layer.register_forward_hook(lambda m, a, out: self.seen.append(out))
        self.reference = self._activations(x).detach()
        self.category = 3
        self.w = torch.full((1, self.reference.shape[1]), 0.1, device=x.device, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.w], lr=1e-2)

    def _activations(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.clear()
        self.network(x)
        return self.seen[0]

    def step(self, inverting: bool) -> None:
        channels = self.reference.shape[1]
        mask = self.w[0, channels - 1] * self.reference[0, channels - 1]
        for k in range(channels - 1):
            mask = mask + self.w[0, k] * self.reference[0, k]
        mask = F.interpolate(mask[None, None], size=self.x.shape[2:], mode="bilinear", align_corners=True)
        mask = ((mask - mask.min()) / mask.max()).expand_as(self.x)
        kept = self.x * mask + self.blur * (1 - mask)
        deleted = self.x * (1 - mask) + self.blur * mask
        inversion = (self._activations(kept) - self.reference).pow(2).sum() / self.reference.pow(2).sum()
        highlight = -self.network(kept).softmax(dim=1)[0, self.category]
        suppress = self.network(deleted).softmax(dim=1)[0, self.category]
        norm = self.w.pow(2).sum()
        loss = inversion + 5 * norm if inverting else highlight + suppress + 2 * norm
        self.optimiser.zero_grad()
        loss.backward(retain_graph=True)
        self.optimiser.step()
        self.w.data.clamp_(0, 100000)

    def seconds(self, steps: int) -> tuple[float, float]:
        """Of one step of either stage."""
        inverting = timed(lambda: [self.step(True) for _ in range(steps)], self.x.device)
        of_class = timed(lambda: [self.step(False) for _ in range(steps)], self.x.device)
        return inverting / steps, of_class / steps


_CLOCK = [time.perf_counter]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def timed(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = _CLOCK[0]()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _CLOCK[0]() - start


def ours(explainer: Explainer, x: torch.Tensor) -> tuple[float, float]:
    """Seconds an image of one step of either stage; ``explainer`` has short stages."""
    blur = blurred(x)
    begun = explainer.begin(x, blur)
    targets = torch.full((len(x),), 3, device=x.device)
    first, second = explainer.recipe.steps
    inverting = timed(lambda: invert(begun.problem, explainer.features_behind), x.device)
    of_class = timed(lambda: explain(begun.problem, explainer.logits_behind, begun.weights, targets), x.device)
    return inverting / first / len(x), of_class / second / len(x)


def whole(steps: tuple[float, float]) -> float:
    """Seconds an image of 11 + 69 steps."""
    return 11 * steps[0] + 69 * steps[1]


def on_cpu(args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cpu")
    network, slow = build(args.network), build(args.network)
    layer = {"resnet18": "layer4", "squeezenet1_0": "features", "alexnet": "features"}[args.network]
    steps, times = (1, 1) if args.quick else (2, 3)
    x = images(args.batch, device)
    speed = "compile" if args.compile else "eager"
    kinds = PRECISIONS
    short = recipe("authors", steps=(steps, steps))
    made = {kind: Explainer(network, x[:1], short, precision=kind, speed=speed) for kind in kinds}
    loop = Loop(slow, slow.get_submodule(layer), x[:1])
    loop.step(False)
    for explainer in made.values():
        ours(explainer, x)
    seconds: dict[str, list[tuple[float, float]]] = {"loop": [], **{kind: [] for kind in kinds}}
    for _ in range(times):
        seconds["loop"].append(loop.seconds(steps))
        for kind, explainer in made.items():
            seconds[kind].append(ours(explainer, x))
    best = {name: tuple(min(s[i] for s in found) for i in (0, 1)) for name, found in seconds.items()}
    for name, (first, second) in best.items():
        each = f"step {1e3 * first:7.1f} ms, class step {1e3 * second:7.1f} ms"
        print(f"{name:10s} {each}, image {whole((first, second)):6.2f} s")
    return {
        "seconds_per_image": round(whole(best["float32"]), 3),
        "loop_seconds_per_image": round(whole(best["loop"]), 3),
        "speedup": round(whole(best["loop"]) / whole(best["float32"]), 2),
        "seconds_per_image_bfloat16": round(whole(best["bfloat16"]), 3),
        "speedup_bfloat16": round(whole(best["loop"]) / whole(best["bfloat16"]), 2),
        "batch": args.batch,
        "network": args.network,
        "speed": speed,
    }


def flat(count: int) -> dict[str, Any]:
    """Peak memory after a tenth of the images and after all: batches of small ones, few steps."""
    device = torch.device("cpu")
    explainer = Explainer(build("squeezenet1_0"), torch.zeros(1, 3, 64, 64), recipe("authors", steps=(1, 1)))
    marks = []
    for start in range(0, count, 8):
        x = F.interpolate(images(8, device), size=(64, 64)) + start
        explainer.answer(explainer.begin(x, blurred(x)), torch.zeros(8, dtype=torch.int64))
        marks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {"images": count, "peak_mb_early": round(marks[len(marks) // 10]), "peak_mb": round(marks[-1])}


def spread(count: int, batch: int = 16, **changes: Any) -> dict[str, Any]:
    """What float32 and 80 steps make of one rounding: real images one by one and in batches, SqueezeNet."""
    import numpy as np
    from PIL import Image

    from pipeline.models import ModelSpec, load
    from stages.preprocess import Preprocess

    data = Path(os.environ["RAYLENS_TEST_DATA"])
    network = load(ModelSpec(name="squeezenet1_0", weights=str(data / "weights/squeezenet1_0.safetensors")))
    preprocess = Preprocess(**network.preprocess)
    files = sorted((data / "ilsvrc_val/images").glob("*.jpg"))[:count]
    pixels = np.stack([preprocess.pixels(np.asarray(Image.open(f).convert("RGB"))) for f in files])
    x = preprocess.normalise(torch.from_numpy(pixels))
    with torch.no_grad():
        classes = torch.cat([network.module(piece).argmax(dim=1) for piece in x.split(batch)])  # the same in every run
    made = {p: Explainer(network.module, x[:1], recipe("paper", **changes), precision=p) for p in PRECISIONS}
    runs = {"alone": ("float32", 1), "together": ("float32", batch), "bfloat16": ("bfloat16", batch)}
    masks, kept = {}, {}
    for name, (precision, size) in runs.items():
        parts, after = [], []
        for piece, targets in zip(x.split(size), classes.split(size), strict=True):
            begun = made[precision].begin(piece, blurred(piece))
            answer = made[precision].answer(begun, targets)
            mask = begun.problem.mask(answer.w)[:, 0]
            parts.append(mask >= 1.5 * mask.mean((1, 2), keepdim=True))
            after.append(answer.kept_after)
        masks[name], kept[name] = torch.cat(parts), torch.cat(after)
    return {
        "images": len(files),
        "batch": batch,
        "float32_alone_or_together": agreement(masks["alone"], masks["together"], kept["alone"], kept["together"]),
        "float32_or_bfloat16": agreement(masks["together"], masks["bfloat16"], kept["together"], kept["bfloat16"]),
    }


def agreement(one: torch.Tensor, other: torch.Tensor, kept: torch.Tensor, kept_other: torch.Tensor) -> dict[str, float]:
    """Of masks [n, H, W] at the default threshold, and of the probability [n] of the class in what they keep."""
    overlap = (one & other).sum((1, 2)) / (one | other).sum((1, 2)).clamp(min=1)
    moved = (kept - kept_other).abs()
    return {
        "mask_iou_mean": round(float(overlap.mean()), 4),
        "mask_iou_least": round(float(overlap.min()), 4),
        "score_change_mean": round(float(moved.mean()), 5),
        "score_change_most": round(float(moved.max()), 5),
        "score_change_signed": round(float((kept_other - kept).mean()), 5),
    }


def on_gpu(quick: bool) -> dict[str, Any]:
    """VGG-19, both precisions: images a second, share of peak, and the agreement of the masks at twice their mean."""
    device = torch.device("cuda")
    network = build("vgg19").to(device)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    masks = {}
    for precision in ("float32", "bfloat16"):
        kind = torch.float32 if precision == "float32" else torch.bfloat16
        a = torch.randn(8192, 8192, device=device, dtype=kind)
        _ = a @ a
        peak = 5 * 2 * 8192**3 / timed(lambda a=a: [a @ a for _ in range(5)], device)
        for speed in ("eager",) if quick else ("eager", "compile", "cuda_graphs"):
            explainer = Explainer(network, images(1, device), recipe("paper"), precision=precision, speed=speed)
            count = explainer.images_within(0.6 * torch.cuda.mem_get_info()[0])
            x = images(count, device)
            blur = blurred(x)
            targets = torch.zeros(count, dtype=torch.int64, device=device)
            explainer.answer(explainer.begin(x, blur), targets)
            begun = explainer.begin(x, blur)
            seconds = timed(lambda e=explainer, x=x, b=blur, t=targets: e.answer(e.begin(x, b), t), device)
            if speed == "eager":
                answer = explainer.answer(begun, targets)
                mask = begun.problem.mask(answer.w)[:8, 0]
                masks[precision] = mask >= 2 * mask.mean((1, 2), keepdim=True)
            flops = (2 * 10 + 4 * 70 + 7) * explainer.operations.plain * count
            found[f"{precision}/{speed}"] = {
                "images": count,
                "images_per_s": round(count / seconds, 2),
                "seconds_per_image": round(seconds / count, 4),
                "share_of_peak": round(flops / seconds / peak, 3),
                "peak_tflops": round(peak / 1e12, 1),
                "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            }
            torch.cuda.empty_cache()
    both = [m[: min(len(v) for v in masks.values())] for m in masks.values()]
    overlap = (both[0] & both[1]).sum((1, 2)) / (both[0] | both[1]).sum((1, 2)).clamp(min=1)
    found["mask_iou_bfloat16"] = round(float(overlap.float().mean()), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat of one step: about 20 s on two quiet cores")
    parser.add_argument("--threads", type=int, default=0, help="torch threads on the CPU (default: torch's own)")
    parser.add_argument("--batch", type=int, default=8, help="images in one optimisation")
    parser.add_argument("--network", default="resnet18", choices=("resnet18", "squeezenet1_0", "alexnet"))
    parser.add_argument("--compile", action="store_true", help="give the network to torch.compile")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead: on a machine that others use")
    parser.add_argument("--flat", type=int, default=0, help="also run so many images and watch the memory")
    parser.add_argument("--spread", type=int, default=0, help="real images, one by one against in batches of 16")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.cpu_time:
        _CLOCK[0] = time.process_time
    print(f"{datetime.date.today()}  {platform.processor() or platform.machine()}  torch {torch.__version__}")
    print(f"{torch.get_num_threads()} threads, {args.network}, batch {args.batch}, load {os.getloadavg()[0]:.1f}")
    result: dict[str, Any] = {"bench": "gfi", **on_cpu(args), "clock": _CLOCK[0].__name__}
    result["threads"] = torch.get_num_threads()
    if args.flat:
        result["flat"] = flat(args.flat)
    if args.spread:
        result["spread"] = spread(args.spread)
    if torch.cuda.is_available():
        result["gpu"] = on_gpu(args.quick)
    result["load_average"] = round(os.getloadavg()[0], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
