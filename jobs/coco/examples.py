"""A few kept images of each coarse class with their regions drawn, where the images can be read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from jobs.coco.config import CocoConfig
from jobs.coco.kept import filter_rows, split_metadata
from pipeline import images
from pipeline.errors import RaylensError
from pipeline.report.ink import PALETTE
from pipeline.run import Run
from pipeline.sources.files import absolute
from pipeline.sources.json_stream import copied
from pipeline.sources.selection import key_shares
from stages.coco.masks import mask
from stages.coco.taxonomy import Taxonomy

_TRIES = 2  # candidates for each place: some images may be unreadable
_GREY = (200, 200, 200)


@dataclasses.dataclass(frozen=True)
class Example:
    key: str
    pixels: np.ndarray  # uint8 [H, W, 3], regions drawn
    caption: str


def examples(run: Run, config: CocoConfig, taxonomy: Taxonomy) -> dict[str, list[Example]]:
    """Up to ``report.examples`` images for each coarse class, drawn by key hash from the splits that name a folder."""
    found: dict[str, list[Example]] = {name: [] for name in taxonomy.coarse_names}
    for split, source in config.splits.items():
        wanted = {name: config.report.examples - len(shown) for name, shown in found.items()}
        if source.images is not None and any(wanted.values()):
            _add(found, wanted, run, split, absolute(source.annotations), taxonomy, config.images)
    return {name: shown for name, shown in found.items() if shown}


def _add(
    found: dict[str, list[Example]],
    wanted: Mapping[str, int],
    run: Run,
    split: str,
    path: str,
    taxonomy: Taxonomy,
    limits: images.Limits,
) -> None:
    rows = filter_rows(run, split, ["key", "coarse_name", "kept"])
    order = np.argsort(key_shares(rows.column("key").combine_chunks(), "example"), kind="stable")
    names = rows.column("coarse_name").to_pylist()
    chosen: dict[str, list[int]] = {name: [] for name in wanted}
    for i in order.tolist():
        if names[i] is not None and len(chosen[names[i]]) < _TRIES * wanted[names[i]]:
            chosen[names[i]].append(i)
    table = run.key_table(split).table().select(["key", "uri", "places"])
    picked = {i: table.slice(i, 1).to_pylist()[0] for listed in chosen.values() for i in listed}
    try:
        annotations = _annotations(path, picked)
    except RaylensError:  # the annotation file is gone: a page without pictures is still a page
        return
    categories = json.loads(split_metadata(run.key_table(split))["categories"])
    fine = {c["id"]: c["name"] for c in categories}
    for name, listed in chosen.items():
        shown = 0
        for i in listed:
            image = images.load(picked[i]["uri"], limits) if shown < wanted[name] else None
            if image is None or isinstance(image, images.DecodeError):
                continue
            pixels, caption = _drawn(image.pixels, annotations[i], fine, taxonomy)
            found[name].append(Example(picked[i]["key"], pixels, caption))
            shown += 1


def _annotations(path: str, picked: Mapping[int, dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The annotations of a few images, read at their places."""
    spans = sorted(
        (start, length, i)
        for i, row in picked.items()
        for start, length in zip(row["places"][::2], row["places"][1::2], strict=True)
    )
    found: dict[int, list[dict[str, Any]]] = {i: [] for i in picked}
    for data, (_, _, i) in zip(copied(path, [(s, n) for s, n, _ in spans]), spans, strict=True):
        try:
            found[i].append(json.loads(data))
        except ValueError as error:
            raise RaylensError("has changed since it was listed", where=path) from error
    return found


def _drawn(
    pixels: np.ndarray, annotations: Sequence[Mapping[str, Any]], fine: Mapping[int, str], taxonomy: Taxonomy
) -> tuple[np.ndarray, str]:
    """The image with its regions tinted and outlined, and the names of its classes."""
    height, width = pixels.shape[:2]
    shown = list(dict.fromkeys(fine[a["category_id"]] for a in annotations))
    labelling = sorted(name for name in shown if not taxonomy.is_public(name))
    colours = {name: _rgb(PALETTE[i % len(PALETTE)]) for i, name in enumerate(labelling)}
    out = pixels.astype(np.float32) * 0.85
    # Public regions first: what labels the image lies on top.
    for annotation in sorted(annotations, key=lambda a: not taxonomy.is_public(fine[a["category_id"]])):
        region = _region(annotation, height, width)
        if region is None:
            continue
        colour = np.array(colours.get(fine[annotation["category_id"]], _GREY), np.float32)
        out[region] = 0.55 * out[region] + 0.45 * colour
        out[_edge(region, max(3, 2 * (max(height, width) // 320) + 1))] = colour
    public = sorted(name for name in shown if taxonomy.is_public(name))
    caption = ", ".join([taxonomy.name(name) for name in labelling] + [f"({name})" for name in public])
    return np.clip(out, 0, 255).astype(np.uint8), caption


def _region(annotation: Mapping[str, Any], height: int, width: int) -> np.ndarray | None:
    """The annotated pixels; those of the box where there is no segmentation that fits the image."""
    if annotation.get("segmentation"):
        try:
            return mask(annotation["segmentation"], height, width)
        except ValueError:
            pass
    if annotation.get("bbox"):
        x, y, w, h = (round(v) for v in annotation["bbox"])
        found = np.zeros((height, width), bool)
        found[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)] = True
        return found
    return None


def _edge(region: np.ndarray, thick: int) -> np.ndarray:
    inner = np.asarray(Image.fromarray(region.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(thick)))
    return region & (inner == 0)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
