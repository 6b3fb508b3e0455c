"""The demo's last part: guided feature inversion on a few scenes, and a table of methods on the same scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs import compare, gfi
from jobs.compare.report_data import title
from jobs.config import check
from pipeline.engine import Outcome

SCENES, FULL_SCENES = 24, None  # of the split that the network never saw; None: all
STEPS, FULL_STEPS = (5, 25), (10, 70)  # of GFI's two stages; --full takes the paper's
METHODS = ("chip", "gfi", "grad_cam", "guided_backprop", "lrp", "gradient")
FULL_METHODS = (*METHODS, "guided_grad_cam", "c_mwp", "smooth_grad", "occlusion")


def gfi_config(root: Path, network: dict[str, Any], *, full: bool = False, seed: int = 0) -> gfi.GfiConfig:
    """Guided feature inversion of the demo's network: what a user would write in YAML."""
    inversion, of_class = FULL_STEPS if full else STEPS
    values = {
        "seed": seed,
        "model": network,
        "data": {"eval": _scenes(root, full=full)},
        "gfi": {"inversion_steps": inversion, "class_steps": of_class, "inclusive": False},
    }
    return check(gfi.GfiConfig, values, where="demo")


def compare_config(
    root: Path, network: dict[str, Any], *, full: bool = False, seed: int = 0
) -> compare.CompareJobConfig:
    """The methods on the same scenes; CHIP's weights are those that RUN/chip has solved."""
    values = {
        "seed": seed,
        "model": network,
        "chip": str(root / "chip"),
        "data": {"eval": _scenes(root, full=full)},
        "methods": FULL_METHODS if full else METHODS,
        "parameters": {"gfi": {"steps": FULL_STEPS if full else STEPS}},
        "measure": {"inclusive": False, "deletion_steps": 8, "speed_images": 8},
        "report": {"examples": 6},
    }
    return check(compare.CompareJobConfig, values, where="demo")


def _scenes(root: Path, *, full: bool) -> dict[str, object]:
    count = FULL_SCENES if full else SCENES
    scenes = root / "scenes"
    split = {"kind": "coco", "annotations": str(scenes / "instances_val.json"), "images": str(scenes / "val")}
    return split | ({"sample": count} if count else {})


def inverted(root: Path, network: dict[str, Any], say: Callable[[str], None], *, full: bool = False) -> int:
    """RUN/gfi: a mask of each scene, and what the network makes of what the masks keep and remove."""
    config = gfi_config(root, network, full=full)
    outcome = gfi.run(config, str(root / "gfi"), config.options(say=say))
    rows = {row["name"]: row for row in _metrics(root / "gfi", outcome) if row["kind"] == "score"}
    say(f"\nprobability of the network's answer, {_shown(rows['score'])} in the whole scene:")
    for part, does in (("kept", "keeps"), ("removed", "removes")):
        before, after = rows[f"{part}_before"], rows[f"{part}_after"]
        say(f"  in what the mask {does:<8}{_shown(before)} before GFI, {_shown(after)} after")
    return outcome.exit_code


def compared(root: Path, network: dict[str, Any], say: Callable[[str], None], *, full: bool = False) -> int:
    """RUN/compare: every method by every measure on the same scenes."""
    config = compare_config(root, network, full=full)
    outcome = compare.run(config, str(root / "compare"), config.options(say=say))
    rows = _metrics(root / "compare", outcome)
    say("\nmethods on the same scenes (box: GFI's localization error; insertion, deletion: areas under the curves):")
    for method in (*config.methods, "center"):
        mine = {r["measure"]: r for r in rows if r["method"] == method and r["rule"] in ("halves", "fixed", "")}
        line = f"  {title(method):<24}box {_shown(mine.get('gfi_error'), 100)} %"
        if method != "center":
            line += f"   pointing {_shown(mine.get('pointing_0'), 100)} %"
            line += "".join(f"   {name} {_shown(mine.get(name))}" for name in ("insertion", "deletion"))
        say(line)
    return outcome.exit_code


def _metrics(run: Path, outcome: Outcome) -> list[dict[str, Any]]:
    mark = outcome.fingerprints["metrics"][:8]
    found: list[dict[str, Any]] = json.loads((run / "metrics" / mark / "metrics.json").read_text())["rows"]
    return found


def _shown(row: Mapping[str, Any] | None, scale: int = 1) -> str:
    if row is None or row.get("value") is None:
        return "undefined"
    digits = 3 if scale == 1 else 1
    error = row.get("se")
    return f"{scale * row['value']:.{digits}f}" + ("" if error is None else f" ± {scale * error:.{digits}f}")
