"""The demo's two-level part: its scenes are filtered and relabelled, and a two-level network is trained on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import coco, semantic
from jobs.config import check
from jobs.semantic.variants import variants
from stages.coco.rule import READINGS

TAXONOMY = Path(__file__).parents[1] / "taxonomies" / "scenes.yaml"
# The shared backbone stays as it is, and its features are computed once; --full sees each scene in four forms.
QUICK: dict[str, Any] = {
    "epochs": 30, "batch": 64, "lr": 0.03, "freeze": True, "augment": None, "checkpoint_every": 10,
}  # fmt: skip
FULL: dict[str, Any] = QUICK | {"epochs": 40, "views": 4, "augment": {"scale": [0.7, 1.0]}}


def coco_config(scenes: Path) -> coco.CocoConfig:
    """What a user would write in YAML to filter the scenes."""
    splits = {
        split: {"annotations": str(scenes / f"instances_{split}.json"), "images": str(scenes / split)}
        for split in ("train", "tune", "val")
    }
    return check(coco.CocoConfig, {"splits": splits, "taxonomy": str(TAXONOMY)}, where="demo")


def semantic_config(coco_run: Path, network: dict[str, Any], *, full: bool = False, seed: int = 0) -> Any:
    """Two-level networks on the kept scenes; ``network`` is the shared backbone, as in a model section."""
    values = {
        "seed": seed,
        "coco": str(coco_run),
        "splits": {"train": "train", "tune": "tune", "eval": "val"},
        "networks": [network],
        "training": FULL if full else QUICK,
    }
    return check(semantic.SemanticConfig, values, where="demo")


def filtered(root: Path, say: Callable[[str], None]) -> int:
    """RUN/coco: which scenes are kept, and why the others are not."""
    config = coco_config(root / "scenes")
    outcome = coco.run(config, str(root / "coco"), config.options(say=say))
    (summary,) = (root / "coco/kept").glob(f"{outcome.fingerprints['filter'][:8]}/summary.json")
    say("\nscenes kept, because their classes (people aside) share one coarse class:")
    for split, found in json.loads(summary.read_text()).items():
        reasons = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in found["filtered"].items())
        kept_people = found["readings"][str(READINGS[1])]
        say(f"  {split:<6}{found['kept']:,} of {found['images']:,} ({reasons}; {kept_people:,} with people-only kept)")
    return outcome.exit_code


def two_levels(root: Path, network: dict[str, Any], say: Callable[[str], None], *, full: bool = False) -> int:
    """RUN/semantic: fine and coarse classes of the kept scenes, and how well one explains the other."""
    config = semantic_config(root / "coco", network, full=full)
    outcome = semantic.run(config, str(root / "semantic"), config.options(say=say))
    say("\ntwo levels on scenes the network never saw (IA: both right; IP, IR: one level right given the other):")
    for variant in variants(config):
        mark = outcome.fingerprints[f"indexes_{variant.name}"]
        path = root / "semantic" / f"indexes_{variant.name}" / mark[:8] / "metrics.json"
        found = json.loads(path.read_text())["eval"]
        line = f"  {variant.kind:<8}coarse accuracy {_shown(found['coarse_accuracy'])}"
        for rule in variant.rules[:1]:
            told = found["rules"][rule]["set"]
            line += "".join(f"   {name} {_shown(told[name])}" for name in ("IA", "IP", "IR"))
            line += f"   IF1 {_shown(told['IF']['1'])}" + ("   (k known)" if rule == "oracle_k" else "")
        say(line)
    return outcome.exit_code


def _shown(found: dict[str, float | None]) -> str:
    return "undefined" if found["value"] is None else f"{found['value']:.3f}"
