"""How fast the perturbed-network sweep is, beside plain forwards of the same images. Needs no Ray.

    python tests/bench/chip_sweep.py [--quick] [--threads 2]

Every time is the minimum of three (``--quick``: two). *plain* is one forward of the batch in the faster of the two
memory layouts; *naive* is N gated whole forwards, one of them timed. The sweep is timed whole: normalising,
gates, prefix, perturbed networks, softmax, rows. The last line is JSON.
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

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.torch_in_use import full_float32
from stages.chip.sweep import ChipSweep, SweepConfig
from stages.preprocess import Preprocess

CPU_NETWORKS = ("vgg16", "resnet18", "squeezenet1_0", "inception_v3", "densenet121")
GPU_CASES = (("vgg16", "last_conv"), ("vgg16", "first_conv"), ("resnet50", "last_conv"))
ILSVRC_TRAIN = 1_281_167


def build(name: str) -> nn.Module:
    from pipeline.vision import torchvision

    torch.manual_seed(0)
    extra = {"init_weights": False} if name == "inception_v3" else {}
    return getattr(torchvision.models, name)(weights=None, **extra).eval()


def best(run: Callable[[], Any], times: int, device: torch.device) -> float:
    """Seconds of the fastest of ``times`` runs, after one that is not counted."""
    fastest = float("inf")
    for i in range(times + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i:
            fastest = min(fastest, time.perf_counter() - start)
    return fastest


def sweep_of(name: str, network: nn.Module, device: torch.device, gates: int, **fields: Any) -> tuple[ChipSweep, int]:
    size = 299 if name == "inception_v3" else 224
    stage = ChipSweep(SweepConfig(gates=gates, preprocess=Preprocess(size=(size, size)), **fields))
    stage.setup(device, {"network": network})
    return stage, size


def batch_of(images: int, size: int) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, size, size), dtype=np.uint8)
    return {
        "key": [f"{i}" for i in range(images)],
        "split": "bench",
        "valid": np.ones(images, bool),
        "rows": [{"label": i} for i in range(images)],
        "pixels": pixels,
    }


def last_layer(name: str, images: int, gates: int, times: int) -> dict[str, Any]:
    """Plain forward, gated forward and sweep of one batch, in turns, so that outside load falls on all."""
    device = torch.device("cpu")
    network = build(name)
    stage, size = sweep_of(name, network, device, gates)
    assert stage.cut is not None
    batch = batch_of(images, size)
    usual = stage.config.preprocess.normalise(torch.from_numpy(batch["pixels"]))
    last = usual.contiguous(memory_format=torch.channels_last)
    other = build(name)  # the same network in the usual memory layout
    layer = stage.cut.layers["last_conv"]
    gate = (torch.rand(images, layer.channels, 1, 1) < 0.5).float()
    seconds: dict[str, list[float]] = {"usual": [], "last": [], "naive": [], "sweep": []}
    with torch.no_grad():
        for _ in range(times):
            seconds["usual"].append(best(lambda: other(usual), 1, device))
            seconds["last"].append(best(lambda: network(last), 1, device))
            seconds["sweep"].append(best(lambda: stage(batch), 1, device))
            handle = _gate(network, layer.name, gate)
            if handle is not None:
                seconds["naive"].append(best(lambda: network(last), 1, device))
                handle.remove()
    plain = min(seconds["usual"] + seconds["last"])
    # Where the layer is a function's call no module can be hooked: a plain forward costs the same.
    naive = gates * min(seconds["naive"] or seconds["last"])
    sweep = min(seconds["sweep"])
    return {
        "plain": plain,
        "sweep": sweep,
        "cost": sweep / plain,
        "speedup": naive / sweep,
        "images_per_s": images / sweep,
        "operations": stage.cost()["forwards_per_row"],
        "path": stage.cut.path("last_conv"),
    }


def _gate(network: nn.Module, call: str, gate: torch.Tensor) -> Any:
    """Multiply one module's output, whichever call it is; None where the layer is no module."""
    modules = dict(network.named_modules())
    module = modules.get(call.partition(":")[0])
    if module is None or ":" in call:
        return None
    return module.register_forward_hook(lambda m, a, out: out * gate)


def first_layer(gates: int, times: int) -> dict[str, float]:
    """VGG16's first layer: the sweep of one image beside the bare rest of the network on the same gated copies."""
    device = torch.device("cpu")
    network = build("vgg16")
    stage, size = sweep_of("vgg16", network, device, gates, layers=("first_conv",))
    batch = batch_of(1, size)
    x = stage.config.preprocess.normalise(torch.from_numpy(batch["pixels"]))
    copies = min(stage._copies["first_conv"], gates)
    rest = nn.Sequential(*list(network.features)[2:], network.avgpool, nn.Flatten(), network.classifier)
    masks = torch.rand(gates, 64, 1, 1) < 0.5

    def bare() -> None:
        with torch.no_grad():
            tap = network.features[:2](x.contiguous(memory_format=torch.channels_last))
            for start in range(0, gates, copies):
                rest(tap * masks[start : start + copies]).softmax(1)

    # Interleaved, so that a neighbour's load falls on both.
    pairs = [(best(bare, 1, device), best(lambda: stage(batch), 1, device)) for _ in range(times)]
    reference, sweep = min(p[0] for p in pairs), min(p[1] for p in pairs)
    return {"bare": reference, "sweep": sweep, "ratio": reference / sweep, "networks_per_s": gates / sweep}


def on_gpu(quick: bool) -> list[dict[str, Any]]:
    full_float32()  # as the engine's workers: torch's own default would measure TF32
    device = torch.device("cuda")
    rows = []
    for precision in ("network", "bfloat16"):
        kind = torch.float32 if precision == "network" else torch.bfloat16
        a = torch.randn(8192, 8192, device=device, dtype=kind)
        peak = 2 * 8192**3 / best(lambda a=a: a @ a, 5, device)
        for name, layer in GPU_CASES:
            network = build(name).to(device)
            gates = 100
            stage, size = sweep_of(name, network, device, gates, layers=(layer,), precision=precision)
            images = (2 if quick else 8) if layer == "first_conv" else stage.micro_batch(device)
            batch = batch_of(images, size)
            seconds = best(lambda s=stage, b=batch: s(b), 2 if quick else 3, device)
            rows.append(
                {
                    "network": name,
                    "layer": layer,
                    "precision": "float32" if precision == "network" else precision,
                    "images_per_s": images / seconds,
                    "networks_per_s": images * gates / seconds,
                    "share_of_peak": stage.cost()["flops_per_row"] * images / seconds / peak,
                    "peak_tflops": peak / 1e12,
                    "hours_ilsvrc_train": ILSVRC_TRAIN * seconds / images / 3600,
                    "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
                }
            )
            del network, stage
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute: smaller batches, fewer repeats and gates")
    parser.add_argument("--threads", type=int, default=0, help="torch threads on the CPU (default: torch's own)")
    parser.add_argument("--images", type=int, default=0, help="images in a batch (default 8; quick: 4)")
    parser.add_argument("--only", nargs="*", help="networks to measure; others are null in the JSON line")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    times, images = (2, args.images or 4) if args.quick else (3, args.images or 8)
    print(f"{datetime.date.today()}  {platform.processor() or platform.machine()}  torch {torch.__version__}")
    print(f"{torch.get_num_threads()} threads, batch {images}, N = 100, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'network':15s} {'plain s':>8s} {'sweep s':>8s} {'x plain':>8s} {'x ops':>6s} {'naive/sweep':>12s} "
        f"{'images/s':>9s}"
    )
    found: dict[str, dict[str, Any]] = {}
    for name in CPU_NETWORKS:
        if args.only and name not in args.only:
            continue
        row = found[name] = last_layer(name, images, 100, times)
        print(
            f"{name:15s} {row['plain']:8.3f} {row['sweep']:8.3f} {row['cost']:8.2f} {row['operations']:6.2f} "
            f"{row['speedup']:12.1f} {row['images_per_s']:9.2f}   {row['path']}",
            flush=True,
        )
    first: dict[str, float] = {}
    if not args.only or "first_conv" in args.only:
        first = first_layer(24 if args.quick else 100, 1 if args.quick else 3)
        print(
            f"vgg16 first_conv: bare {first['bare']:.2f} s, sweep {first['sweep']:.2f} s, ratio {first['ratio']:.3f}, "
            f"{first['networks_per_s']:.2f} networks/s"
        )
    gpu: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        gpu = on_gpu(args.quick)
        for row in gpu:
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    else:
        print(
            "no GPU: bf16 and float32 images/s, networks/s, share of the matmul peak and hours for 1.28 M not measured"
        )

    def value(name: str, key: str) -> float | None:
        return round(found[name][key], 3) if name in found else None

    result: dict[str, Any] = {
        "bench": "chip_sweep",
        "speedup_vs_naive": value("vgg16", "speedup"),
        "cost_vs_plain": value("vgg16", "cost"),
        "resnet18_cost_vs_plain": value("resnet18", "cost"),
        "squeezenet_cost_vs_plain": value("squeezenet1_0", "cost"),
        "first_conv_ratio": round(first["ratio"], 3) if first else None,
        "images_per_s": value("vgg16", "images_per_s"),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load_average": round(os.getloadavg()[0], 2),
    }
    if gpu:
        result["gpu"] = gpu
    print(json.dumps(result))


if __name__ == "__main__":
    main()
