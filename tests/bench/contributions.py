"""Contributions of every layer for many images, beside as many plain forward and backward passes. Needs no Ray.

    python tests/bench/contributions.py [--quick] [--threads 2] [--images 100] [--batch 8] [--network resnet50]

*ours* gives each image's score, the image's term and one for every layer, one backward a batch. *plain* is a forward
and a backward of the score to the image, with frozen weights: the least that a derivative costs. *training* is the same
with gradients of the weights. All see the same batches and take turns, so that outside load falls on each. That the
terms add up to the score is checked. On a GPU the same there. The last line is JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.linear.contributions import Contributing
from stages.linear.scope import freeze

_CLOCK = [time.perf_counter]


def build(name: str) -> nn.Module:
    """Random weights, and batch norms that are not trivial."""
    from pipeline.vision import torchvision

    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.bias.normal_(0, 0.1)
    return network


def timed(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = _CLOCK[0]()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _CLOCK[0]() - start


def plain(network: nn.Module, x: torch.Tensor) -> None:
    leaf = x.clone().requires_grad_(True)
    network(leaf).amax(dim=1).sum().backward()
    network.zero_grad(set_to_none=True)


def measured(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    network = build(args.network).to(device)
    x = torch.randn(args.images, 3, args.side, args.side, generator=torch.Generator().manual_seed(0)).to(device)
    batches = x.split(args.batch)
    contributing = Contributing(freeze(network, x[:1]))
    found = contributing(batches[0])
    gap = (found.score - found.input - found.residual).abs() / (found.input.abs() + found.layers.abs().sum(1))

    def frozen() -> None:
        network.requires_grad_(False)

    def learning() -> None:
        network.requires_grad_(True)

    ways: dict[str, tuple[Callable[[], None], Callable[[torch.Tensor], Any]]] = {
        "ours": (frozen, contributing),
        "plain": (frozen, lambda part: plain(network, part)),
        "training": (learning, lambda part: plain(network, part)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.times + 1):  # the first round warms up
        for name, (before, way) in ways.items():
            before()
            seconds[name].append(timed(lambda w=way: [w(part) for part in batches], device))
    best = {name: min(found[1:]) for name, found in seconds.items()}
    for name, taken in best.items():
        print(f"{name:10s} {args.images} images {taken:7.2f} s, {1e3 * taken / args.images:7.1f} ms an image")
    return {
        "images": args.images,
        "layers": len(found.names),
        "seconds": round(best["ours"], 3),
        "plain_seconds": round(best["plain"], 3),
        "training_seconds": round(best["training"], 3),
        "ratio": round(best["ours"] / best["plain"], 3),
        "ratio_training": round(best["ours"] / best["training"], 3),
        "gap": float(f"{float(gap.max()):.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 images once: about 20 s on two quiet cores")
    parser.add_argument("--threads", type=int, default=0, help="torch threads on the CPU (default: torch's own)")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="images in one pass, of either way")
    parser.add_argument("--times", type=int, default=2, help="rounds; the fastest counts")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead: on a machine that others use")
    args = parser.parse_args()
    if args.quick:
        args.images, args.times = 8, 1
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.cpu_time:
        _CLOCK[0] = time.process_time
    print(f"{datetime.date.today()}  {platform.processor() or platform.machine()}  torch {torch.__version__}")
    print(f"{torch.get_num_threads()} threads, {args.network}, batch {args.batch}, load {os.getloadavg()[0]:.1f}")
    result: dict[str, Any] = {"bench": "contributions", "network": args.network, "batch": args.batch}
    result |= measured(args, torch.device("cpu")) | {"clock": _CLOCK[0].__name__}
    result["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        result["gpu"] = measured(args, torch.device("cuda")) | {"device": torch.cuda.get_device_name()}
    result["load_average"] = round(os.getloadavg()[0], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
