"""Scenes drawn on the spot: a COCO-format dataset that needs nothing from outside and is the same everywhere.

A scene has one to three things on a patterned ground. Colours and patterns are drawn without looking at the class, so
only shape tells a class. The label of a scene is the category of its largest thing, which is a person only where
there are people only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from jobs.demo.canvas import fill, png, polygons, shade, share, smooth_noise, texture
from jobs.demo.draws import Draws
from jobs.demo.shapes import ACCENT, BODY, CATEGORIES, DARK, LIGHT, Category, bar, box, oval

CLASS_NAMES = tuple(category.name for category in CATEGORIES)  # index = class index; 0 is person
PERSON = CATEGORIES[0]
_INDEX = {category.id: index for index, category in enumerate(CATEGORIES)}
_THINGS = CATEGORIES[1:]


@dataclass(frozen=True)
class Thing:
    """One drawn object: the visible part of it, as a mask."""

    category: Category
    mask: np.ndarray  # bool [size, size]

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 in pixels, the far edges exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # uint8 [size, size, 3]
    things: tuple[Thing, ...]  # in the order they were painted

    @property
    def label(self) -> int:
        """Class index of the largest thing: never a person's, unless there are people only."""
        return _INDEX[max(self.things, key=lambda thing: thing.area).category.id]


def draw(split: str, index: int, seed: int, size: int = 80) -> Scene:
    """One scene, a pure function of its arguments.

    The label turns round robin with ``index``, so classes are balanced; one scene in 25 has people only.
    """
    main = PERSON if index % 25 == 24 else _THINGS[(index - index // 25) % len(_THINGS)]
    count = Draws(seed, split, index).pick([1, 2, 3], [0.5, 0.33, 0.17])
    for attempt in range(1000):
        scene = _try(Draws(seed, split, index, attempt), main, count, size)
        if scene is not None:
            return scene
    raise RuntimeError(f"no scene of a {main.name} fits in {size} pixels (split {split}, index {index})")


def _try(d: Draws, main: Category, count: int, size: int) -> Scene | None:
    near = [category for category in CATEGORIES if category.supercategory == main.supercategory]
    far = [category for category in _THINGS if category.supercategory != main.supercategory]
    reach = d.uniform((0.32, 0.42, 0.5)[count - 1], 0.68)
    figures = [_place(d, main, reach, size)]
    for _ in range(count - 1):
        category = d.pick(d.pick([[PERSON], near, far], [0.35, 0.4, 0.25]))
        if PERSON in (main, category):
            category, side = PERSON, d.uniform(0.34, 0.6)
        else:
            side = max(reach * d.uniform(0.45, 0.65), 0.24)
        if not 0.03 <= figures[-1].mask.mean() <= 0.4:
            return None
        figures.append(_place(d, category, side, size))
    behind = d.pick([True, False])  # the main thing, to be painted first
    if not behind:
        figures.reverse()
    things = []
    for at, figure in enumerate(figures):
        mask = figure.mask.copy()
        for above in figures[at + 1 :]:
            mask &= ~above.mask
        seen = int(mask.sum())
        if not 0.03 * size * size <= seen <= 0.4 * size * size or seen < 0.75 * figure.mask.sum():
            return None
        things.append(Thing(figure.category, mask))
    if main is not PERSON and not _clear(things, things[0 if behind else -1]):
        return None

    ground = _colour(d)
    picture = _ground(d, ground, size)
    for figure in figures:
        _paint(d, picture, ground, figure)
    grain = (d.array(size, size, 1) - 0.5) * d.uniform(0.01, 0.07)
    return Scene((np.clip(picture + grain, 0, 1) * 255 + 0.5).astype(np.uint8), tuple(things))


def _clear(things: list[Thing], first: Thing) -> bool:
    """Whether the main thing is clearly the largest: by mask, and among what is no person by box as well."""

    def extent(thing: Thing) -> int:
        x0, y0, x1, y1 = thing.box
        return (x1 - x0) * (y1 - y0)

    people = [thing for thing in things if thing.category is PERSON]
    others = [thing for thing in things if thing is not first and thing.category is not PERSON]
    if any(first.area < 1.2 * person.area for person in people):
        return False
    if any(first.area < 2 * other.area or extent(first) < 1.5 * extent(other) for other in others):
        return False
    return first.area >= 1.6 * sum(other.area for other in others)


def _ground(d: Draws, colour: np.ndarray, size: int) -> np.ndarray:
    picture = shade(colour, texture(d, size), d.uniform(0.03, 0.16))
    picture = np.clip(picture + 0.12 * smooth_noise(d, size, 2)[..., None] * d.array(3), 0, 1)
    for _ in range(d.index(6)):  # clutter: bits of no meaning, in colours near the ground's
        x, y, reach = d.uniform(0, size), d.uniform(0, size), d.uniform(0.05, 0.22) * size
        bit = d.pick(
            [
                oval(x, y, reach, reach * d.uniform(0.3, 1)),
                box(x - reach, y - reach * d.uniform(0.2, 0.8), x + reach, y + reach * d.uniform(0.2, 0.8)),
                bar(x - reach, y - reach, x + reach, y + reach * d.uniform(-1, 1), reach * 0.3),
                np.stack([x + reach * (d.array(3) * 2 - 1), y + reach * (d.array(3) * 2 - 1)], axis=1),
            ]
        )
        near = np.clip(colour + (d.array(3) - 0.5) * 0.7, 0, 1)
        alpha = share(fill([[bit]], size)[0])[..., None] * d.uniform(0.4, 1)
        picture = picture * (1 - alpha) + near * alpha
    return picture


@dataclass(frozen=True)
class _Figure:
    """An outline put somewhere: what each part covers, and all of them together."""

    category: Category
    parts: list[tuple[str, np.ndarray]]  # tone, subpixels inside
    mask: np.ndarray  # bool [size, size]


def _place(d: Draws, category: Category, reach: float, size: int) -> _Figure:
    """Turns, mirrors and stretches an outline and puts it anywhere; its larger side is ``reach`` of the picture's."""
    parts = category.outline(d)
    turn, flip, stretch = d.uniform(-0.3, 0.3), d.pick([-1.0, 1.0]), d.uniform(0.88, 1.14)
    cos, sin = np.cos(turn), np.sin(turn)
    move = np.array([[flip * stretch * cos, flip * stretch * sin], [-sin / stretch, cos / stretch]])
    placed = [[outline @ move for outline in part.rings] for part in parts]
    corners = np.concatenate([outline for rings in placed for outline in rings])
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = reach * size / (high - low).max()
    shift = 1 + (size - 2 - scale * (high - low)) * d.array(2) - scale * low
    covered = fill([[outline * scale + shift for outline in rings] for rings in placed], size)
    tones = [part.tone for part in parts]
    return _Figure(category, list(zip(tones, covered, strict=True)), share(np.logical_or.reduce(covered)) >= 0.5)


def _paint(d: Draws, picture: np.ndarray, ground: np.ndarray, figure: _Figure) -> None:
    """Paints a figure over the picture, in place, in colours that stand out from the ground."""
    size = len(picture)
    body = _away_from(d, [ground])
    accent = _away_from(d, [ground, body])
    pattern, strength = texture(d, size), d.uniform(0.0, 0.14)
    # Half of the things have light and dark exchanged: else a screen or a sail would tell its class by brightness.
    dark, light = d.pick([(body * 0.3, body * 0.35 + 0.65), (body * 0.35 + 0.65, body * 0.3)])
    coats = {
        BODY: shade(body, pattern, strength),
        ACCENT: shade(accent, pattern, strength / 2),
        DARK: shade(dark, pattern, strength / 3),
        LIGHT: shade(light, pattern, strength / 3),
    }
    for tone, inside in figure.parts:
        alpha = share(inside)
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        if not len(rows):
            continue
        spot = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        picture[spot] += (coats[tone][spot] - picture[spot]) * alpha[spot][..., None]


def _away_from(d: Draws, colours: list[np.ndarray]) -> np.ndarray:
    """A colour that can be told from the given ones."""
    best, distance = colours[0], -1.0
    for _ in range(20):
        colour = _colour(d)
        near = min(float(np.sqrt(((colour - other) ** 2).sum())) for other in colours)
        if near > distance:
            best, distance = colour, near
        if distance > 0.4:
            break
    return best


def _colour(d: Draws) -> np.ndarray:
    """Any colour, rarely a shrill one."""
    colour = d.array(3)
    return colour.mean() + d.uniform(0.25, 0.9) * (colour - colour.mean())


def write_scenes(
    folder: str | Path, counts: Mapping[str, int], size: int = 80, seed: int = 0, workers: int = 1
) -> dict[str, Path]:
    """Draws a dataset: ``folder/<split>/<index>.png`` and ``folder/instances_<split>.json`` (COCO).

    Args:
        counts: scenes per split, e.g. ``{"train": 2000, "tune": 300, "val": 500}``.
        size: side of the pictures in pixels.
        workers: processes that draw; the files do not depend on it.

    Returns:
        The annotation file of each split. Its images carry ``label``: the id of the category that labels the scene.
    """
    folder = Path(folder)
    paths = {}
    for split, count in counts.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        work = partial(_write, str(folder), split, seed, size)
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                records = list(pool.map(work, range(count), chunksize=max(1, min(32, count // workers))))
        else:
            records = [work(index) for index in range(count)]
        paths[split] = folder / f"instances_{split}.json"
        paths[split].write_text(json.dumps(instances(records), separators=(",", ":")) + "\n")
    return paths


def _write(folder: str, split: str, seed: int, size: int, index: int) -> dict[str, Any]:
    scene = draw(split, index, seed, size)
    name = f"{index:06d}.png"
    (Path(folder) / split / name).write_bytes(png(scene.image))
    return record(scene, index, name)


def record(scene: Scene, index: int, name: str) -> dict[str, Any]:
    """The image entry of a scene and its annotations, as COCO writes them."""
    size = len(scene.image)
    annotations = []
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        annotations.append(
            {
                "image_id": index + 1,
                "category_id": thing.category.id,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": thing.area,
                "iscrowd": 0,
                "segmentation": polygons(thing.mask),
            }
        )
    image: dict[str, Any] = {"id": index + 1, "file_name": name, "width": size, "height": size}
    image["label"] = CATEGORIES[scene.label].id
    return {"image": image, "annotations": annotations}


def instances(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The COCO json of some scenes."""
    annotations = [annotation for entry in records for annotation in entry["annotations"]]
    return {
        "info": {"description": "Scenes drawn by Raylens"},
        "images": [entry["image"] for entry in records],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": c.id, "name": c.name, "supercategory": c.supercategory} for c in CATEGORIES],
    }
