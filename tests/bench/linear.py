"""Rows and columns of a super-resolution network, beside the paper's scheme and torch.func.jacrev. Needs no Ray.

    python tests/bench/linear.py [--quick] [--threads 2] [--side 64] [--engine stream] [--device cpu]

The four-layer PixelShuffle network x2 (receptive field 11), on an image of side x side. *ours* probes all rows and all
columns by combs. *doubled* is the paper's scheme: one impulse, x0 beside it in every pass. *jacrev* asks torch.func for
rows in chunks. The last two are timed on some rows and columns. Some of what the combs give is compared with impulse by
impulse, relative to the largest weight.

Also: both methods for ten singular triplets; EDSR-baseline x4 on a 64 x 64 image, whose field is larger than that, some
impulses in one pass (the paper: about 2 rows or columns a second on a 12 GB GPU; --device cuda says what a GPU does);
and for every shipped network what masks take, kept or streamed: bytes for one image, probes a second (the paper's
Tables 1 and 2). The last line is JSON.
"""

from __future__ import annotations

import argparse
import datetime
import functools
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

from pipeline.torch_in_use import full_float32
from stages.linear.comb import Comb, Teeth
from stages.linear.memory import frozen_bytes
from stages.linear.networks.cyclegan import resnet_generator
from stages.linear.networks.edsr import edsr_baseline
from stages.linear.networks.espcn import espcn
from stages.linear.networks.fsrcnn import fsrcnn
from stages.linear.networks.pixelshuffle import pixel_shuffle
from stages.linear.scope import LinearScope, freeze, impulses
from stages.linear.svd import block, power

_CLOCK = [time.perf_counter]


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = _CLOCK[0]()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _CLOCK[0]() - start


def kept(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of one run, and what it gave."""
    found: list[Any] = []
    return timed(lambda: found.append(run()), device), found[0]


def ready(network: nn.Module, device: torch.device) -> nn.Module:
    return network.eval().requires_grad_(False).to(device)


def combs(comb: Comb) -> tuple[int, list[Teeth], list[Teeth]]:
    """(rows and columns, row patches, column patches)."""
    rows, columns = list(comb.rows()), list(comb.columns())
    return sum(len(t.ys) * len(t.xs) for t in (*rows, *columns)), rows, columns


def error(scope: LinearScope, rows: list[Teeth], columns: list[Teeth]) -> float:
    """Largest difference from single impulses, of patches and what is around them, relative to the largest weight."""
    worst = largest = 0.0
    for teeth, single in ((rows, scope.row), (columns, scope.column)):
        for t in teeth[:: max(1, len(teeth) // 6)]:
            a, b = len(t.ys) // 2, len(t.xs) // 2
            whole = single((t.channel, t.ys[a], t.xs[b]))
            height, width = t.values.shape[3:]
            room = torch.nn.functional.pad(torch.zeros_like(whole), (width, width, height, height))
            top, left = t.top[a] + height, t.left[b] + width
            room[:, top : top + height, left : left + width] = t.values[a, b]
            found = room[:, height : room.shape[1] - height, width : room.shape[2] - width]
            worst, largest = max(worst, float((found - whole).abs().max())), max(largest, float(whole.abs().max()))
    return worst / largest


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


def edsr(places: int, device: torch.device) -> float:
    """Rows and columns a second of EDSR-baseline x4 on 64 x 64 RGB, ``places`` impulses in one pass."""
    torch.manual_seed(0)
    x0 = torch.rand(1, 3, 64, 64, device=device)
    scope = LinearScope(ready(edsr_baseline(4), device), x0, engine="stream", masks="keep")
    at = [(i % 3, 8 + 5 * i % 48, 11 * i % 64) for i in range(places)]

    def run() -> None:
        scope.forward(impulses(at, scope.x0))
        scope.adjoint(impulses(at, scope.output))

    run()
    return 2 * places / timed(run, device)


def masks(side: int, probes: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """For every shipped network: bytes of an image, and probes a second (forward and transposed) both ways."""
    torch.manual_seed(0)
    networks = {
        "pixel_shuffle": (pixel_shuffle(2), 1),
        "espcn": (espcn(2), 1),
        "fsrcnn": (fsrcnn(2), 1),
        "edsr_baseline": (edsr_baseline(2), 3),
        "cyclegan": (resnet_generator(9), 3),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (network, channels) in networks.items():
        frozen = freeze(ready(network, device), torch.rand(1, channels, side, side, device=device))
        size = frozen_bytes(frozen)
        told: dict[str, Any] = {"activations": size.activations, "keep": size.keep, "stream": size.stream}
        x0 = torch.rand(1, channels, side, side, device=device)
        v = torch.randn(probes, *x0.shape[1:], device=device)
        for way in ("keep", "stream"):
            scope = LinearScope(frozen, x0, engine="stream", masks=way)
            u = torch.randn(probes, *scope.output.shape[1:], device=device)

            run = functools.partial(_both, scope, v, u)
            run()
            told[f"{way}_probes_per_s"] = round(2 * probes / min(timed(run, device) for _ in range(2)), 2)
        found[name] = told
    return found


def _both(scope: LinearScope, v: torch.Tensor, u: torch.Tensor) -> None:
    scope.forward(v)
    scope.adjoint(u)


def triplets(scope: LinearScope, device: torch.device) -> dict[str, Any]:
    """Ten of them by both methods, until every certificate is 1e-4 of the largest value."""
    found: dict[str, Any] = {}
    for name, method in (("block", block), ("power", power)):
        seconds, answer = kept(functools.partial(method, scope, 10, tolerance=1e-4, limit=200), device)
        found |= {f"svd_{name}_s": round(seconds, 2), f"svd_{name}_passes": answer.passes}
        print(f"ten triplets, {name}: {seconds:.1f} s, {answer.passes} probes, certificate {answer.certificate:.1e}")
    return found


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller networks and images: within a minute")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int)
    parser.add_argument("--batch", type=int, default=16, help="combs in one pass")
    parser.add_argument("--engine", choices=["autograd", "stream"], default="stream")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds: on a machine that others use")
    return parser.parse_args()


def main() -> None:
    options = asked()
    if options.cpu_time:
        _CLOCK[0] = time.process_time
    torch.set_num_threads(options.threads)
    full_float32()  # as the engine's workers: on a GPU torch's own default would measure TF32
    device, quick = torch.device(options.device), options.quick
    side = options.side or (32 if quick else 64)
    torch.manual_seed(0)
    network = ready(pixel_shuffle(2, width=16 if quick else 64), device)
    x0 = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)).to(device)

    scope = LinearScope(network, x0, engine=options.engine)
    comb = Comb(scope, batch=options.batch)
    combs(comb)  # first calls prepare what later ones reuse: every rival has one
    seconds, (count, rows, columns) = kept(lambda: combs(comb), device)
    ours, worst = count / seconds, error(scope, rows, columns)
    paper = doubled(network, x0, 10 if quick else 40, device)
    rival = jacrev(network, x0, 64 if quick else 256, device)
    print(f"{side} x {side}, field {comb.field[0].width}, {options.engine}: {comb.passes} probes, {seconds:.1f} s")
    print(f"rows and columns a second: ours {ours:.0f}, doubled batch {paper:.1f}, jacrev {rival:.1f} (rows)")
    print(f"ours / doubled {ours / paper:.0f}, ours / jacrev {ours / rival:.1f}")
    print(f"largest difference from single impulses: {worst:.1e} of the largest weight")
    told = triplets(scope, device)
    told["edsr_x4_rows_cols_per_s"] = None
    if not quick:
        told["edsr_x4_rows_cols_per_s"] = round(edsr(64 if device.type == "cuda" else 4, device), 3)
        print(f"EDSR-baseline x4, 64 x 64: {told['edsr_x4_rows_cols_per_s']} rows and columns a second on {device}")
    if device.type != "cuda":
        print("with --device cuda: all of this on a GPU, EDSR-baseline x4 with 64 impulses in one pass")
    told["masks"] = masks(16 if quick else 64, 2 if quick else 8, device)
    print(f"{'one image, MB':<16}{'activations':>12}{'keep':>8}{'stream':>8}{'keep /s':>10}{'stream /s':>10}")
    for name, m in told["masks"].items():
        sizes = f"{m['activations'] / 1e6:>12.2f}{m['keep'] / 1e6:>8.2f}{m['stream'] / 1e6:>8.2f}"
        print(f"{name:<16}{sizes}{m['keep_probes_per_s']:>10.1f}{m['stream_probes_per_s']:>10.1f}")
    line = {
        "bench": "linear",
        "rows_cols_per_s": round(ours, 2),
        "doubled_per_s": round(paper, 3),
        "jacrev_per_s": round(rival, 3),
        "error": worst,
        "side": side,
        "field": comb.field[0].width,
        "engine": options.engine,
        **told,
        "quick": quick,
        "clock": _CLOCK[0].__name__,
        "load": round(os.getloadavg()[0], 2),
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
