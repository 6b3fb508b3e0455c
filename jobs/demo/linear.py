"""The demo's linear interpreters: how much of its network's scores is bias, and which class each pixel speaks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs import linear
from jobs.config import check
from pipeline.engine import Outcome

SCENES, FULL_SCENES = 100, None  # of the split that the network never saw; None: all
VOTED, FULL_VOTED = 6, 24
ATTACK = 8  # grey levels


def linear_config(root: Path, network: dict[str, Any], task: str, *, full: bool = False) -> linear.LinearConfig:
    """Contributions or votes of the demo's network: what a user would write in YAML."""
    count = (FULL_VOTED if full else VOTED) if task == "votes" else FULL_SCENES if full else SCENES
    scenes = root / "scenes"
    split = {"kind": "coco", "annotations": str(scenes / "instances_val.json"), "images": str(scenes / "val")}
    values = {
        "task": task,
        "networks": {"demo": network},
        "data": {"images": split | ({"sample": count} if count else {})},
        # Scaled by factors, as the paper has it, maps whose sums are near zero would win most pixels here.
        "classify": {"attack": ATTACK, "scaling": "shift"},
    }
    return check(linear.LinearConfig, values, where="demo")


def contributed(root: Path, network: dict[str, Any], say: Callable[[str], None], *, full: bool = False) -> int:
    """RUN/layers: what the image and each layer's bias add to the score."""
    config = linear_config(root, network, "layers", full=full)
    outcome = linear.run(config, str(root / "layers"), config.options(say=say))
    rows = {(r["view"], r["name"]): r for r in _summary(root / "layers", outcome)}
    say("\nwhat makes the score of the predicted class, mean ± standard deviation over scenes:")
    for view, title in (("clean", "the scene"), ("attacked", f"under FGSM, {ATTACK} grey levels")):
        image, share = rows[view, "input"], rows[view, "share"]
        say(f"  {title:<28}image {_percent(image)}   biases {_percent(share)}")
    return outcome.exit_code


def voted(root: Path, network: dict[str, Any], say: Callable[[str], None], *, full: bool = False) -> int:
    """RUN/votes: the class each pixel of a few scenes speaks for."""
    config = linear_config(root, network, "votes", full=full)
    outcome = linear.run(config, str(root / "votes"), config.options(say=say))
    rows = {(r["view"], r["name"]): r for r in _summary(root / "votes", outcome)}
    say("\nwhat pixels vote for, mean ± standard deviation over scenes:")
    for view, title in (("clean", "the scene"), ("attacked", f"under FGSM, {ATTACK} grey levels")):
        say(f"  {title:<28}{_percent(rows[view, 'predicted_share'])} of pixels for the predicted class")
    return outcome.exit_code


def _summary(run: Path, outcome: Outcome) -> list[dict[str, Any]]:
    mark = outcome.fingerprints["summary_demo"][:8]
    found: list[dict[str, Any]] = json.loads((run / "summary_demo" / mark / "metrics.json").read_text())["rows"]
    return found


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['mean']:.1f}" + ("" if row["std"] is None else f" ± {100 * row['std']:.1f}") + " %"
