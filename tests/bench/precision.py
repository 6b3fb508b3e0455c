"""What autocast and torch.compile do to the sweep where gates cannot be pushed down: error and speed.

    python tests/bench/precision.py [--quick] [--data FOLDER]

Error: SqueezeNet with its real weights, first and last layer, photographs of RAYLENS_TEST_DATA (noise without it, which
says little); g of every class under every gate beside the same in float64. Told are the largest and the mean absolute
difference, the norm of the difference over the norm of g minus its mean (what a centred fit sees), and, for scale, the
same for plain float32. Speed: the rest of SqueezeNet and of VGG16 behind their first layers on gated copies, eager and
compiled (and, with a GPU, replayed as a CUDA graph), in float32 and autocast; the least of three, in turns.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.torch_in_use import full_float32  # noqa: E402
from stages.chip.sweep import ChipSweep, SweepConfig  # noqa: E402

LAYERS = ("first_conv", "last_conv")


def squeezenet(data: Path | None) -> nn.Module:
    from safetensors.torch import load_file

    from pipeline.vision import torchvision

    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_0(weights=None).eval()
    if data is not None:
        weights = load_file(data / "weights/squeezenet1_0.safetensors")
        network.load_state_dict({name: value.float() for name, value in weights.items()})
    return network


def photographs(data: Path | None, count: int) -> torch.Tensor:
    """Normalised images (count, 3, 224, 224)."""
    from PIL import Image

    preprocess = SweepConfig().preprocess
    if data is None:
        pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 224, 224), dtype=np.uint8)
    else:
        paths = sorted((data / "imagenet_sample").glob("*.jp*g"))
        paths = paths[:: len(paths) // count][:count]
        pixels = np.stack([preprocess.pixels(np.asarray(Image.open(p).convert("RGB"))) for p in paths])
    return preprocess.normalise(torch.from_numpy(pixels))


def scores(data: Path | None, x: torch.Tensor, gates: int, device: torch.device, precision: str) -> Any:
    """g per layer (B, N, C) in float64 for a precision of the sweep's, or "float64" or "network" for the reference."""
    network = squeezenet(data).to(device)
    if precision == "float64":
        network.double()
    chosen = "network" if precision in ("float64", "network") else precision
    stage = ChipSweep(SweepConfig(layers=LAYERS, gates=gates, classes="all", precision=chosen))  # type: ignore[arg-type]
    stage.setup(device, {"network": network})
    measured = stage.measure(x.to(device), [str(i) for i in range(len(x))], "bench")
    return {layer: g.double().cpu() for layer, g in measured.g.items()}


def errors(data: Path | None, images: int, gates: int, device: torch.device) -> list[dict[str, Any]]:
    x = photographs(data, images)
    exact = scores(data, x, gates, device, "float64")
    rows = []
    for precision in ("network", "bfloat16", "float16"):
        try:
            found = scores(data, x, gates, device, precision)
        except RuntimeError as error:  # a CPU without kernels for it
            print(f"{precision}: {error}")
            continue
        for layer in LAYERS:
            away, g = found[layer] - exact[layer], exact[layer]
            centred = g - g.mean(1, keepdim=True)
            rows.append(
                {
                    "precision": "float32" if precision == "network" else precision,
                    "layer": layer,
                    "max_abs": float(away.abs().max()),
                    "mean_abs": float(away.abs().mean()),
                    "relative_to_centred_g": float(away.norm() / centred.norm()),
                }
            )
            print(
                "  ".join(f"{k} {v:.2e}" if isinstance(v, float) else f"{v:10s}" for k, v in rows[-1].items()),
                flush=True,
            )
    return rows


def ways(rest: nn.Module, copies: torch.Tensor, precision: str) -> dict[str, Callable[[], object]]:
    """The rest of a network on gated copies, each way it can be run."""

    def under() -> contextlib.AbstractContextManager[Any]:
        if precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(copies.device.type, dtype=getattr(torch, precision))

    def eager() -> object:
        with torch.inference_mode(), under():
            return rest(copies)

    compiled = torch.compile(rest)

    def fused() -> object:
        with torch.no_grad(), under():
            return compiled(copies)

    found: dict[str, Callable[[], object]] = {"eager": eager, "compiled": fused}
    if copies.device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side), torch.no_grad(), under():
            for _ in range(3):
                rest(copies)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph), torch.no_grad(), under():
            rest(copies)
        found["cuda_graph"] = graph.replay
    return found


def speeds(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    from pipeline.vision import torchvision

    vgg = torchvision.models.vgg16(weights=None).eval()
    small = squeezenet(None)
    cases = {
        "squeezenet1_0": (nn.Sequential(*list(small.features)[2:], small.classifier, nn.Flatten()), (96, 109, 109), 16),
        "vgg16": (nn.Sequential(*list(vgg.features)[2:], vgg.avgpool, nn.Flatten(), vgg.classifier), (64, 224, 224), 4),
    }
    rows = []
    for name, (rest, shape, count) in cases.items():
        if quick and name == "vgg16":
            continue
        rest = rest.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        count = count * 16 if device.type == "cuda" else count
        copies = torch.rand(count, *shape, device=device).contiguous(memory_format=torch.channels_last)
        for precision in ("float32", "bfloat16"):
            found = ways(rest, copies, precision)
            least = dict.fromkeys(found, float("inf"))
            for turn in range(4):
                for way, run in found.items():
                    began = time.perf_counter()
                    run()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    if turn:  # the first one warms up (and compiles)
                        least[way] = min(least[way], time.perf_counter() - began)
            row = {"network": name, "precision": precision, "copies": count}
            row |= {f"{way}_per_s": count / seconds for way, seconds in least.items()}
            rows.append(row)
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 images and 10 gates; SqueezeNet alone")
    parser.add_argument("--data", default=os.environ.get("RAYLENS_TEST_DATA", ""))
    args = parser.parse_args()
    data = Path(args.data) if args.data else None
    full_float32()  # as the engine's workers: on a GPU torch's own default would measure TF32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, gates = (2, 10) if args.quick else (8, 25)
    result = {
        "bench": "precision",
        "device": str(device),
        "errors": errors(data, images, gates, device),
        "speeds": speeds(device, args.quick),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
