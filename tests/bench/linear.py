"""Rows and columns of a super-resolution network, beside the paper's scheme and torch.func.jacrev. Needs no Ray.

    python tests/bench/linear.py [--quick] [--threads 2] [--side 64] [--engine stream] [--device cpu]

A 4-layer PixelShuffle network x2 (receptive field 11) with ReLUs, on an image of side x side. *ours* probes all rows
and all columns by combs. *doubled* is the paper's scheme: one impulse, x0 beside it in every pass. *jacrev* asks
torch.func for rows in chunks. The last two are timed on some rows and columns. What the combs give is compared with
impulse by impulse. Also: contributions of a ResNet-50 against a plain forward and backward pass, and both methods for
ten singular triplets. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.linear.comb import Comb, Teeth
from stages.linear.contributions import Contributing
from stages.linear.scope import LinearScope, freeze
from stages.linear.svd import block, power

_CLOCK = [time.perf_counter]


def build(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width // 2, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width // 2, 4, 3, padding=1),
        nn.PixelShuffle(2),
    ).eval()


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = _CLOCK[0]()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _CLOCK[0]() - start


def combs(comb: Comb) -> tuple[int, list[Teeth], list[Teeth]]:
    """(rows and columns, row patches, column patches)."""
    rows, columns = list(comb.rows()), list(comb.columns())
    return sum(len(t.ys) * len(t.xs) for t in (*rows, *columns)), rows, columns


def error(scope: LinearScope, rows: list[Teeth], columns: list[Teeth]) -> float:
    """Largest difference between patches and single impulses, over some teeth of some combs."""
    worst = 0.0
    for teeth, single in ((rows, scope.row), (columns, scope.column)):
        for t in teeth[:: max(1, len(teeth) // 6)]:
            a, b = len(t.ys) // 2, len(t.xs) // 2
            whole = single((t.channel, t.ys[a], t.xs[b]))
            height, width = t.values.shape[3:]
            padded = torch.nn.functional.pad(whole, (width, width, height, height))
            top, left = t.top[a] + height, t.left[b] + width
            patch = padded[:, top : top + height, left : left + width]
            worst = max(worst, float((patch - t.values[a, b]).abs().max()))
            worst = max(worst, float((whole.abs().sum() - patch.abs().sum()).abs()))
    return worst


def doubled(network: nn.Module, x0: torch.Tensor, count: int, device: torch.device) -> float:
    """Rows and columns a second, one impulse at a time with x0 beside it."""
    scope = LinearScope(network, x0, engine="stream", masks="stream")

    def run() -> None:
        for i in range(count):
            scope.column(i * 7)
            scope.row(i * 7)

    scope.column(0)
    scope.row(0)
    return 2 * count / timed(run, device)


def jacrev(network: nn.Module, x0: torch.Tensor, count: int, device: torch.device) -> float:
    """Rows a second, of as many rows as ``count``."""
    rows = torch.func.jacrev(lambda x: network(x).flatten()[:count], chunk_size=64)
    rows(x0)
    return count / timed(lambda: rows(x0), device)


def contributions(count: int, side: int, device: torch.device) -> float:
    """Time of contributions / time of a plain forward and backward pass to the image, on a ResNet-50."""
    from pipeline.vision import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None).eval().requires_grad_(False).to(device)
    x = torch.randn(count, 3, side, side, device=device)
    contributing = Contributing(freeze(network, x[:1]))

    def plain() -> None:
        leaf = x.clone().requires_grad_(True)
        torch.autograd.grad(network(leaf).amax(dim=1).sum(), leaf)

    plain()
    contributing(x)
    pairs = [(timed(lambda: contributing(x), device), timed(plain, device)) for _ in range(3)]
    return sum(p[0] for p in pairs) / sum(p[1] for p in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller network and image; the ratios are smaller too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int)
    parser.add_argument("--batch", type=int, default=16, help="combs in one pass")
    parser.add_argument("--engine", choices=["autograd", "stream"], default="stream")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds: on a machine that others use")
    options = parser.parse_args()
    if options.cpu_time:
        _CLOCK[0] = time.process_time
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    side = options.side or (32 if options.quick else 64)
    network = build(16 if options.quick else 64).to(device)
    x0 = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    some = 10 if options.quick else 40

    scope = LinearScope(network, x0, engine=options.engine)
    comb = Comb(scope, batch=options.batch)
    combs(comb)  # first calls prepare what later ones reuse: every rival has one
    found: list[tuple[int, list[Teeth], list[Teeth]]] = []
    seconds = timed(lambda: found.append(combs(comb)), device)
    count, rows, columns = found[0]
    ours = count / seconds
    worst = error(scope, rows, columns)
    paper = doubled(network, x0, some, device)
    rival = jacrev(network, x0, 64 if options.quick else 256, device)
    print(f"{side} x {side}, field {comb.field[0].width}, {options.engine}: {comb.passes} probes, {seconds:.1f} s")
    print(f"rows and columns a second: ours {ours:.0f}, doubled batch {paper:.1f}, jacrev {rival:.1f} (rows)")
    print(f"largest difference from single impulses: {worst:.1e}")
    svd: dict[str, float] = {}
    for name, method in (("block", block), ("power", power)):
        svd[name] = timed(lambda method=method: method(scope, 10, tolerance=1e-4, limit=200), device)
    print(f"ten triplets: block {svd['block']:.1f} s, power {svd['power']:.1f} s")
    ratio = contributions(2 if options.quick else 8, 64 if options.quick else 224, device)
    print(f"contributions of a ResNet-50: {ratio:.2f} x a forward and backward pass")
    line = {
        "bench": "linear",
        "rows_cols_per_s": round(ours, 2),
        "doubled_per_s": round(paper, 3),
        "jacrev_per_s": round(rival, 3),
        "error": worst,
        "side": side,
        "field": comb.field[0].width,
        "engine": options.engine,
        "svd_block_s": round(svd["block"], 2),
        "svd_power_s": round(svd["power"], 2),
        "contributions_ratio": round(ratio, 3),
        "quick": options.quick,
        "clock": _CLOCK[0].__name__,
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "device": str(device),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
