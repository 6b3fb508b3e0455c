"""The demo's network that asks: trained on grey versions of its scenes, then shown with its questions and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import asking
from jobs.asking.config import ANSWERED
from jobs.config import check

TRAINED_ON, FULL_TRAINED_ON = 600, 1000  # scenes
ASKED, FULL_ASKED = 100, None  # None: all
HINTS = 3
QUICK: dict[str, Any] = {
    "epochs": 6, "batch": 8, "lr": 5.0e-3, "augment": None, "samples": 0, "checkpoint_every": 3,
}  # fmt: skip
FULL: dict[str, Any] = QUICK | {"epochs": 18}


def asking_config(root: Path, *, full: bool = False) -> asking.AskingConfig:
    """Colours of grey scenes, learnt by asking: what a user would write in YAML."""
    scenes = root / "scenes"

    def split(name: str, count: int | None) -> dict[str, Any]:
        given = {"kind": "coco", "annotations": str(scenes / f"instances_{name}.json"), "images": str(scenes / name)}
        return given | ({"sample": count} if count else {})

    values = {
        "task": "ask",
        "data": {
            "train": split("train", FULL_TRAINED_ON if full else TRAINED_ON),
            "ask": split("val", FULL_ASKED if full else ASKED),
        },
        "learn": {"size": [32, 32], "hints": HINTS},
        "network": {"width": 8, "depth": 4},
        "training": FULL if full else QUICK,
    }
    return check(asking.AskingConfig, values, where="demo")


def asked(root: Path, say: Callable[[str], None], *, full: bool = False) -> int:
    """RUN/asking: what the network asks about each scene, and what it makes of the answers."""
    config = asking_config(root, full=full)
    outcome = asking.run(config, str(root / "asking"), config.options(say=say))
    path = root / "asking" / ANSWERED / outcome.fingerprints[ANSWERED][:8] / "metrics.json"
    say("\ncolours of grey scenes it never saw, PSNR by the answers it was given:")
    for row in json.loads(path.read_text())["rows"]:
        gain = "" if row["gain"] is None else f"   {row['gain']:+.2f} ± {row['gain_se']:.2f} by the last"
        say(f"  {row['answers']} answers  {row['psnr']:.2f} ± {row['psnr_se']:.2f} dB{gain}")
    return outcome.exit_code
