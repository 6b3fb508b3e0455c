"""Fast JPEG decoding (`sweep.draft: true`): what it saves, and what it changes in the sweep's rows.

    python tests/bench/decode.py [--quick] [--data FOLDER] [--images 40]

Photographs below the folder (RAYLENS_TEST_DATA) whose short side is at least twice the input's, since no other is
decoded smaller; the share of all that are is told. Speed: reading, decoding and resizing to 224 x 224 in one thread,
the least of three turns. Effect: SqueezeNet's probabilities f and pooled activations a of the last layer, as the sweep
stores them, beside those of whole decoding. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

BATCH = 8


def photographs(folder: Path, least: int) -> tuple[list[Path], int]:
    """Each JPEG once (by name) whose short side is at least ``least`` pixels; and how many JPEGs there are."""
    found, seen = [], set()
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")):
        if path.name in seen or not path.is_file():
            continue
        try:
            with Image.open(path) as image:
                short = min(image.size)
        except OSError:  # data folders hold damaged files on purpose
            continue
        seen.add(path.name)
        if short >= least:
            found.append(path)
    return found, len(seen)


def prepared(stage: Any, paths: list[Path]) -> tuple[np.ndarray, float]:
    """The sweep's pixels of these images, and seconds."""
    from pipeline.decode import prepare_slice
    from pipeline.images import Limits

    began = time.perf_counter()
    slices = prepare_slice(stage, [{"key": str(p), "uri": str(p)} for p in paths], Limits())
    seconds = time.perf_counter() - began
    assert not slices.errors, slices.errors
    return slices.arrays["pixels"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 images")
    parser.add_argument("--data", default=os.environ.get("RAYLENS_TEST_DATA", ""))
    parser.add_argument("--images", type=int, default=40)
    args = parser.parse_args()
    from pipeline.models import ModelSpec, load
    from stages.chip.sweep import ChipSweep, SweepConfig

    data = Path(args.data)
    weights = data / "weights/squeezenet1_0.safetensors"
    if not args.data or not weights.exists():
        sys.exit(
            "give --data, or set RAYLENS_TEST_DATA: a folder with photographs and weights/squeezenet1_0.safetensors"
        )
    whole, fast = (ChipSweep(SweepConfig(gates=1, classes="all", draft=draft)) for draft in (False, True))
    paths, total = photographs(data, 2 * whole.config.preprocess.size[0])
    share = len(paths) / total
    paths = paths[:: max(1, len(paths) // args.images)][: 16 if args.quick else args.images]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    pixels: dict[bool, np.ndarray] = {}
    for _ in range(3):
        for stage in (whole, fast):
            pixels[stage.config.draft], took = prepared(stage, paths)
            seconds[stage.config.draft].append(took)
    network = load(ModelSpec(name="squeezenet1_0", weights=str(weights))).module
    names = [path.name for path in paths]
    whole.setup(torch.device("cpu"), {"network": network})

    def rows(x_uint8: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        x = whole.config.preprocess.normalise(torch.from_numpy(x_uint8))
        batches = zip(x.split(BATCH), [names[i : i + BATCH] for i in range(0, len(x), BATCH)], strict=True)
        parts = [whole.measure(images, keys, "") for images, keys in batches]
        return torch.cat([p.f for p in parts]), torch.cat([p.pooled["last_conv"] for p in parts])

    (f, a), (fast_f, fast_a) = rows(pixels[False]), rows(pixels[True])
    top = f.argmax(1)
    at = torch.arange(len(top))
    away = (f - fast_f).abs()
    result = {
        "bench": "decode",
        "images": len(paths),
        "share_decoded_smaller": share,
        "ms_per_image": 1e3 * min(seconds[False]) / len(paths),
        "decode_speedup": min(seconds[False]) / min(seconds[True]),
        "mean_abs_pixel_difference": float(np.abs(pixels[False].astype(int) - pixels[True]).mean()),
        "mean_abs_f_difference": float(away.mean()),
        "mean_abs_top_f_difference": float(away[at, top].mean()),
        "max_abs_f_difference": float(away.max()),
        "mean_rel_a_difference": float((a - fast_a).abs().mean() / a.abs().mean()),
        "max_rel_a_difference": float((a - fast_a).norm(dim=1).div(a.norm(dim=1)).max()),
        "top1_agreement": float((top == fast_f.argmax(1)).double().mean()),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
