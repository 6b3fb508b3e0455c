"""Channel importance of the last layer for 64 images: this sweep beside captum and pytorch-grad-cam.

    python tests/bench/peers.py [--quick] [--network resnet18] [--peers-python VENV/bin/python]

All three run perturbed networks; the figure is seconds for each of them. Ours draws N = 100 gates of many channels for
an image, the others close one channel after another. A peer needs K networks for an image, minutes on a CPU: it is
timed on --peer-images images and --peer-channels channels. Peers that are not installed are skipped with a line; they
are no dependencies of the project. `grad-cam` wants a virtual environment of its own, named by --peers-python (with
torch and torchvision in it). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LAST = {"resnet18": "layer4", "vgg16": "features.29", "squeezenet1_0": "features.12"}
BATCH = 8


def build(name: str) -> nn.Module:
    from pipeline.vision import torchvision

    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None).eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def timed(run: Callable[[], int]) -> tuple[float, int]:
    """(seconds, perturbed networks) of one run."""
    start = time.perf_counter()
    networks = run()
    return time.perf_counter() - start, networks


def raylens(name: str, count: int, channels: int) -> tuple[float, int]:
    from stages.chip.sweep import ChipSweep, SweepConfig

    stage = ChipSweep(SweepConfig(gates=100))
    stage.setup(torch.device("cpu"), {"network": build(name)})
    x = images(count)
    keys = [str(i) for i in range(count)]

    def run() -> int:
        for i in range(0, count, BATCH):
            stage.measure(x[i : i + BATCH], keys[i : i + BATCH], "bench")
        return 100 * count

    stage.measure(x[:BATCH], keys[:BATCH], "bench")
    return timed(run)


def captum(name: str, count: int, channels: int) -> tuple[float, int]:
    from captum.attr import LayerFeatureAblation

    network = build(name)
    layer = network.get_submodule(LAST[name])
    for module in network.modules():  # captum refuses to ablate what is overwritten in place
        if getattr(module, "inplace", False):
            module.inplace = False
    shape: list[int] = []
    handle = layer.register_forward_hook(lambda m, a, out: shape.append(out.shape[1]))
    with torch.no_grad():
        targets = network(images(count)).argmax(1)
    handle.remove()
    # The first channels one by one, the others as one more group.
    mask = torch.arange(shape[0]).clamp(max=channels - 1).view(1, -1, 1, 1)
    ablation = LayerFeatureAblation(network, layer)

    def run() -> int:
        # One image at a time: with several, it repeats them for each perturbation but not their targets, and fails.
        with torch.no_grad():
            for x, target in zip(images(count).split(1), targets.tolist(), strict=True):
                ablation.attribute(x, target=target, layer_mask=mask, perturbations_per_eval=16)
        return min(channels, shape[0]) * count

    return timed(run)


def ablation_cam(name: str, count: int, channels: int) -> tuple[float, int]:
    network = build(name)
    from pytorch_grad_cam import AblationCAM  # after torchvision, which it imports as it is

    layer = network.get_submodule(LAST[name])
    shape: list[int] = []
    handle = layer.register_forward_hook(lambda m, a, out: shape.append(out.shape[1]))
    with torch.no_grad():
        network(images(1))
    handle.remove()

    def run() -> int:
        share = min(1.0, channels / shape[0])
        with AblationCAM(model=network, target_layers=[layer], ratio_channels_to_ablate=share) as cam:
            cam.batch_size = 32
            for i in range(0, count, BATCH):
                cam(input_tensor=images(count)[i : i + BATCH], targets=None)
        return round(share * shape[0]) * count

    return timed(run)


PEERS = {"raylens": raylens, "captum": captum, "ablation_cam": ablation_cam}


def measure(peer: str, name: str, count: int, channels: int, python: str) -> dict[str, Any] | None:
    """One method in a process of its own; None, with a line, where its package is absent."""
    command = [python, __file__, "--one", peer, "--network", name, "--images", str(count)]
    command += ["--peer-channels", str(channels)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        print(f"{peer}: not measured ({(done.stderr.strip().splitlines() or ['no message'])[-1]})")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 images for us, 1 and 16 channels for the peers")
    parser.add_argument("--network", default="resnet18", choices=sorted(LAST))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--peer-images", type=int, default=4)
    parser.add_argument("--peer-channels", type=int, default=128)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--one", choices=sorted(PEERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        seconds, networks = PEERS[args.one](args.network, args.images, args.peer_channels)
        print(json.dumps({"seconds": seconds, "networks": networks}))
        return
    if args.quick:
        args.images, args.peer_images, args.peer_channels = 8, 1, 16
    result: dict[str, Any] = {"bench": "peers", "network": args.network, "images": args.images}
    print(f"{args.network}, last layer, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for peer in PEERS:
        count = args.images if peer == "raylens" else args.peer_images
        python = args.peers_python if peer == "ablation_cam" else sys.executable
        found = measure(peer, args.network, count, args.peer_channels, python)
        result[f"{peer}_s_per_network"] = None if found is None else found["seconds"] / found["networks"]
        if found is not None:
            print(
                f"{peer:13s} {found['seconds']:8.2f} s for {found['networks']:6d} perturbed networks of {count} "
                f"images: {1e3 * found['seconds'] / found['networks']:.4f} ms each"
            )
    for peer in ("captum", "ablation_cam"):
        theirs, ours = result[f"{peer}_s_per_network"], result["raylens_s_per_network"]
        result[f"speedup_vs_{peer}"] = None if not theirs or not ours else round(theirs / ours, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
