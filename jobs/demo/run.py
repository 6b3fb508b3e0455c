"""``raylens demo``: draws scenes, trains a small network on them, explains it. Needs nothing from outside.

RUN/scenes/      drawn images and COCO annotations
RUN/backbone/    the trained network and its checkpoints
RUN/chip/        a CHIP run on it, with its report
RUN/gfi/         guided feature inversion of a few scenes, with a report
RUN/compare/     a table of methods on the same scenes, with a report
RUN/layers/      what the image and each layer's bias add to a score, with a report
RUN/votes/       which class each pixel of a few scenes votes for, with a report
RUN/enlarging/   a small super-resolution network, trained on the scenes
RUN/filters/     what each pixel of it reads and writes beside bicubic, with a page to explore
RUN/asking/      a network that asks for colours of grey scenes, with a page that can be answered
RUN/coco/        the scenes filtered and relabelled at two levels, with a report
RUN/semantic/    two-level networks on the kept scenes, with a report
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs import chip
from jobs.config import check
from jobs.demo import asking, asking_full, gfi, linear, semantic, superres
from jobs.demo.network import SCENES, SIZE, train_backbone
from jobs.demo.scenes import CLASS_NAMES, write_scenes
from pipeline.cluster import connect
from pipeline.errors import UsageError
from pipeline.options import Resources
from pipeline.progress import duration
from pipeline.provenance import cpu_count
from pipeline.storage import Folder

FIT, FULL_FIT = 1000, None  # training scenes that CHIP is fitted on; None: all
SEED = 0
METHODS = ("chip", "refined_chip", "chip:first_conv", "grad_cam", "gradient")


@dataclasses.dataclass(frozen=True)
class Demo:
    """What every part is given."""

    root: Path
    full: bool
    say: Callable[[str], None]


def run(run_url: str, *, full: bool = False, say: Callable[[str], None] = print) -> int:
    """The whole demo in a local folder; a rerun goes on where it stopped. Returns the exit status."""
    if "://" in run_url:
        raise UsageError("the demo draws its images on this machine", where=run_url, cure="give --run a local folder")
    demo, clock = Demo(Path(run_url).resolve(), full, say), Clock(say)
    codes = []
    for name, part in PARTS:
        with clock.step(name):
            codes.append(part(demo))
    clock.total()
    for report in reports(demo.root):
        say(f"open {report} in a browser")
    return max(codes)


def reports(root: Path) -> list[Path]:
    """The newest report of each run, oldest first: a run that went on has those of before too."""
    found = sorted(root.glob("*/report/*/index.html"), key=lambda path: path.stat().st_mtime_ns)
    newest = {path.parents[2]: path for path in found}
    return [path for path in found if newest[path.parents[2]] == path]


def _draw(demo: Demo) -> int:
    _scenes(demo.root / "scenes", cpu_count())
    return 0


def _start_ray(demo: Demo) -> int:
    connect(Resources())
    return 0


def _train(demo: Demo) -> int:
    folder, instances = Folder(str(demo.root / "backbone")), _scenes(demo.root / "scenes", cpu_count())
    trained = train_backbone(folder, instances, workers=1, threads=cpu_count(), log=demo.say)
    folder.write("network.safetensors", trained.files["network.safetensors"])
    demo.say(f"it is right on {100 * trained.facts['val_accuracy']:.1f} % of {SCENES['val']} scenes it never saw")
    return 0


def _chip(demo: Demo) -> int:
    config = chip_config(demo.root, full=demo.full)
    outcome = chip.run(config, str(demo.root / "chip"), config.options(say=demo.say))
    _tell_errors(demo.root, outcome.fingerprints["metrics"], demo.say)
    return outcome.exit_code


def _gfi(demo: Demo) -> int:
    return gfi.inverted(demo.root, network_section(demo.root), demo.say, full=demo.full)


def _compare(demo: Demo) -> int:
    return gfi.compared(demo.root, network_section(demo.root), demo.say, full=demo.full)


def _coco(demo: Demo) -> int:
    return semantic.filtered(demo.root, demo.say)


def _semantic(demo: Demo) -> int:
    return semantic.two_levels(demo.root, network_section(demo.root), demo.say, full=demo.full)


def _layers(demo: Demo) -> int:
    return linear.contributed(demo.root, network_section(demo.root), demo.say, full=demo.full)


def _votes(demo: Demo) -> int:
    return linear.voted(demo.root, network_section(demo.root), demo.say, full=demo.full)


def _enlarge(demo: Demo) -> int:
    scenes = _scenes(demo.root / "scenes", cpu_count())
    return superres.enlarged(demo.root, scenes, cpu_count(), demo.say, full=demo.full)


def _ask(demo: Demo) -> int:
    status = asking.asked(demo.root, demo.say, full=demo.full)
    return max(status, asking_full.evaluated(demo.root, demo.say)) if demo.full else status


PARTS: tuple[tuple[str, Callable[[Demo], int]], ...] = (
    (f"drawing {sum(SCENES.values()):,} scenes", _draw),
    ("starting Ray", _start_ray),
    ("training a small VGG on them", _train),
    ("CHIP on two of its layers", _chip),
    ("guided feature inversion of a few scenes", _gfi),
    ("methods compared on the same scenes", _compare),
    ("what its layers add to a score", _layers),
    ("which class each pixel of a scene votes for", _votes),
    ("a network that enlarges scenes, pixel by pixel", _enlarge),
    ("a network that asks for the colours of grey scenes", _ask),
    ("the scenes filtered and relabelled at two levels", _coco),
    ("two-level networks on the kept scenes", _semantic),
)


def network_section(root: Path) -> dict[str, Any]:
    """The shared backbone, as the model section of a config."""
    return {
        "name": "jobs.demo.network:small_vgg",
        "weights": str(root / "backbone/network.safetensors"),
        "preprocess": {"size": SIZE, "mean": [0.5] * 3, "std": [0.25] * 3},
        "classes": list(CLASS_NAMES),
    }


def chip_config(root: Path, *, full: bool = False) -> chip.ChipConfig:
    """CHIP on the demo's network: what a user would write in YAML."""
    fit = FULL_FIT if full else FIT

    def split(name: str) -> dict[str, object]:
        scenes = root / "scenes"
        return {"kind": "coco", "annotations": str(scenes / f"instances_{name}.json"), "images": str(scenes / name)}

    values = {
        "seed": SEED,
        "model": network_section(root),
        "data": {"fit": split("train") | ({"limit": fit} if fit else {}), "tune": split("tune"), "eval": split("val")},
        "sweep": {"classes": "all"},
        "localize": {
            "methods": list(METHODS),
            "inclusive": False,
        },
    }
    return check(chip.ChipConfig, values, where="demo")


def _scenes(folder: Path, workers: int) -> dict[str, Path]:
    """Draw, unless they lie there already: the annotations of the last split are written last."""
    paths = {split: folder / f"instances_{split}.json" for split in SCENES}
    if all(path.exists() for path in paths.values()):
        return paths
    return write_scenes(folder, SCENES, size=SIZE, seed=SEED, workers=workers)


def _tell_errors(root: Path, mark: str, say: Callable[[str], None]) -> None:
    """The table in the terminal: what share of scenes each method localizes wrongly."""
    rows = json.loads((root / "chip/metrics" / mark[:8] / "metrics.json").read_text())["rows"]
    say("\nlocalization error (class and box right, IoU >= 0.5), thresholds chosen on other scenes:")
    for row in sorted((r for r in rows if r["rule"] in ("tuned", "fixed")), key=lambda r: r["top1_loc_error"]):
        against = row.get("vs_center")
        beside = (
            "" if against is None else f"   {100 * against:+.1f} ± {100 * row['vs_center_se']:.1f} to the centred box"
        )
        say(f"  {row['method']:<18}{100 * row['top1_loc_error']:5.1f} ± {100 * row['top1_loc_se']:.1f} %{beside}")


class Clock:
    """Says what each part of the demo took."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._began = say, time.monotonic()
        self._parts: list[tuple[str, float]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._say(f"== {name}")
        began = time.monotonic()
        yield
        self._parts.append((name, time.monotonic() - began))

    def total(self) -> None:
        whole = time.monotonic() - self._began
        self._say("\nwhere the time went:")
        for name, seconds in self._parts:
            self._say(f"  {duration(seconds):>12}  {100 * seconds / whole:3.0f} %  {name}")
        self._say(f"  {duration(whole):>12}        in all, on {os.cpu_count()} CPUs\n")
