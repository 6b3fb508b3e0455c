"""Things to draw: parametric outlines of everyday objects, named as COCO names them.

An outline is a list of parts, painted in order. A part is a tone (which colour of the object it takes) and one or more
closed rings filled by parity, so a second ring inside the first is a hole. Coordinates are x right, y down, about
[-1, 1]; proportions vary from draw to draw, so no two chairs are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jobs.demo.draws import Draws

BODY, DARK, LIGHT, ACCENT = "body", "dark", "light", "accent"
Ring = np.ndarray  # float64 [points, 2]


class Part(NamedTuple):
    tone: str
    rings: list[Ring]


@dataclass(frozen=True)
class Category:
    """One fine category: COCO's id and names, and how it is drawn."""

    id: int
    name: str
    supercategory: str
    outline: Callable[[Draws], list[Part]]


def ring(*points: tuple[float, float]) -> Ring:
    return np.array(points, dtype=np.float64)


def oval(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 1.0, points: int = 28) -> Ring:
    """An ellipse, or its part from ``start`` to ``stop`` turns (clockwise from the right), closed by the chord."""
    turn = np.linspace(start, stop, points, endpoint=stop - start < 1) * 2 * np.pi
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], 1)


def box(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return ring((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def plate(x0: float, y0: float, x1: float, y1: float, radius: float) -> Ring:
    """A rectangle with round corners."""
    corners = [(x1 - radius, y1 - radius, 0.0), (x0 + radius, y1 - radius, 0.25)]
    corners += [(x0 + radius, y0 + radius, 0.5), (x1 - radius, y0 + radius, 0.75)]
    return np.concatenate([oval(x, y, radius, radius, turn, turn + 0.25, 6) for x, y, turn in corners])


def bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Ring:
    """A straight stroke of the given width."""
    length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-9)
    dx, dy = (y1 - y0) / length * width / 2, (x0 - x1) / length * width / 2
    return ring((x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy))


def band(x: float, y: float, outer: tuple[float, float], inner: tuple[float, float], start: float, stop: float) -> Ring:
    """A part of an elliptic ring."""
    return np.concatenate([oval(x, y, *outer, start, stop), oval(x, y, *inner, start, stop)[::-1]])


def car(d: Draws) -> list[Part]:
    roof, length, wheel = d.uniform(-0.62, -0.45), d.uniform(0.9, 1.05), d.uniform(0.2, 0.26)
    front, back = d.uniform(0.45, 0.65), d.uniform(-0.75, -0.5)
    cabin = ring((back - 0.1, 0), (back + 0.15, roof), (front - 0.3, roof), (front, 0))
    window = ring((back + 0.05, -0.05), (back + 0.22, roof + 0.1), (front - 0.35, roof + 0.1), (front - 0.12, -0.05))
    middle = (back + front) / 2 - 0.05
    parts = [Part(BODY, [cabin]), Part(LIGHT, [window]), Part(BODY, [box(middle - 0.05, roof, middle + 0.05, 0)])]
    parts += [Part(BODY, [plate(-length, -0.08, length, 0.38, 0.12)])]
    for x in (-0.55, 0.55):
        parts += [Part(DARK, [oval(x, 0.38, wheel, wheel)]), Part(LIGHT, [oval(x, 0.38, wheel * 0.4, wheel * 0.4)])]
    return parts


def boat(d: Draws) -> list[Part]:
    mast, lean, tip = d.uniform(-0.12, 0.12), d.uniform(0.15, 0.3), d.uniform(-1.0, -0.85)
    hull = ring((-0.85, 0.45), (0.85, 0.45), (0.85 - lean * 1.6, 0.85), (-0.85 + lean, 0.85))
    main = ring((mast + 0.06, tip), (mast + 0.06, 0.3), (d.uniform(0.6, 0.75), 0.3))
    jib = ring((mast - 0.06, tip + 0.2), (mast - 0.06, 0.3), (d.uniform(-0.65, -0.45), 0.3))
    parts = [Part(DARK, [box(mast - 0.04, tip, mast + 0.04, 0.46)]), Part(LIGHT, [main]), Part(ACCENT, [jib])]
    return [*parts, Part(BODY, [hull]), Part(DARK, [box(-0.78, 0.53, 0.74, 0.59)])]


def cat(d: Draws) -> list[Part]:
    fat, sway, head = d.uniform(0.4, 0.5), d.uniform(0.55, 0.8), d.uniform(0.33, 0.38)
    tail = band(fat - 0.02, 0.55, (sway * 0.75, 0.42), (sway * 0.75 - 0.17, 0.27), -0.27, 0.25)
    parts = [Part(BODY, [tail]), Part(BODY, [oval(0, 0.4, fat, 0.58)])]
    for side in (-1, 1):
        ear = ring((side * 0.06, -0.62), (side * (head - 0.04), -1.0), (side * (head + 0.02), -0.42))
        parts += [Part(BODY, [ear]), Part(DARK, [oval(side * fat * 0.5, 0.93, 0.17, 0.09)])]
    parts += [Part(BODY, [oval(0, -0.4, head + 0.05, head)]), Part(LIGHT, [oval(0, 0.5, fat * 0.5, 0.33)])]
    eyes = [Part(DARK, [oval(side * 0.15, -0.45, 0.07, 0.09)]) for side in (-1, 1)]
    return [*parts, *eyes, Part(DARK, [ring((-0.06, -0.3), (0.06, -0.3), (0, -0.22))])]


def giraffe(d: Draws) -> list[Part]:
    neck, long, top = d.uniform(0.42, 0.62), d.uniform(0.5, 0.6), d.uniform(-0.95, -0.85)
    parts = []
    for x in (-long + 0.05, -long + 0.27, long - 0.3, long - 0.08):
        parts.append(Part(BODY, [bar(x, 0.2, x + d.uniform(-0.06, 0.06), 1.0, 0.14)]))
    parts += [Part(BODY, [oval(0, 0.15, long, 0.28)])]
    parts += [Part(BODY, [ring((0.1, 0.1), (long, 0.2), (neck + 0.14, top), (neck - 0.08, top))])]
    parts += [
        Part(BODY, [oval(neck + 0.16, top + 0.05, 0.26, 0.13)]),
        Part(DARK, [bar(-long, 0.1, -long - 0.14, 0.5, 0.07)]),
    ]
    parts += [Part(DARK, [bar(neck, top, neck - 0.05, top - 0.18, 0.06)])]
    for x, y in ((-0.3, 0.05), (-0.02, 0.25), (0.2, 0.02), (0.38, -0.2), (neck - 0.03, -0.5), (-0.25, 0.3)):
        parts.append(Part(DARK, [oval(x, y, 0.085, 0.075, points=10)]))
    return parts


def donut(d: Draws) -> list[Part]:
    hole, wide = d.uniform(0.26, 0.36), d.uniform(0.85, 1.0)
    parts = [Part(BODY, [oval(0, 0, 1, wide), oval(0, 0, hole, hole * wide)])]
    parts += [Part(ACCENT, [oval(0, 0, 0.84, 0.84 * wide), oval(0, 0, hole + 0.12, (hole + 0.12) * wide)])]
    for n in range(10):
        turn, far, lean = (n + d.uniform(0, 0.7)) / 10 * 2 * np.pi, d.uniform(hole + 0.2, 0.76), d.uniform(0, np.pi)
        x, y, a, b = far * np.cos(turn), far * np.sin(turn) * wide, 0.07 * np.cos(lean), 0.07 * np.sin(lean)
        parts.append(Part(LIGHT, [bar(x - a, y - b, x + a, y + b, 0.06)]))
    return parts


def pizza(d: Draws) -> list[Part]:
    half, crust = d.uniform(0.62, 0.8), d.uniform(0.2, 0.28)
    slice_ = np.concatenate([ring((0, 1)), oval(0, -0.55, half, 0.32, 0.5, 1.0, 14)])
    edge = band(0, -0.55, (half + 0.06, 0.38), (half - crust * 0.2, 0.32 - crust * 0.6), 0.5, 1.0)
    parts = [Part(LIGHT, [slice_]), Part(BODY, [edge])]
    for x, y in ((-0.28, -0.42), (0.28, -0.38), (0.02, 0.02), (d.uniform(-0.1, 0.1), 0.45)):
        radius = d.uniform(0.13, 0.17)
        parts.append(Part(ACCENT, [oval(x * half / 0.7, y, radius, radius, points=16)]))
    return parts


def chair(d: Draws) -> list[Part]:
    wide, seat, skew, leg = d.uniform(0.48, 0.6), d.uniform(0.1, 0.22), d.uniform(0.15, 0.3), d.uniform(0.11, 0.15)
    parts = [Part(DARK, [box(x, seat, x + leg, 0.8)]) for x in (-wide + skew, wide + skew - leg)]
    back = plate(-wide + skew, -1, wide + skew, -0.72, 0.08)
    parts += [Part(BODY, [back]), Part(BODY, [box(-wide + skew, -0.85, -wide + skew + leg, seat)])]
    parts += [Part(BODY, [box(wide + skew - leg, -0.85, wide + skew, seat)])]
    for n in range(1, 3):
        x = -wide + skew + n * (2 * wide - leg) / 3
        parts.append(Part(BODY, [box(x, -0.85, x + leg, seat)]))
    top = ring((-wide + skew, seat - 0.12), (wide + skew, seat - 0.12), (wide - skew / 2, seat + 0.18))
    top = np.concatenate([top, ring((-wide - skew / 2, seat + 0.18))])
    front = [Part(BODY, [box(x, seat + 0.15, x + leg, 1)]) for x in (-wide - skew / 2, wide - skew / 2 - leg)]
    return [*parts, Part(ACCENT, [top]), *front]


def potted_plant(d: Draws) -> list[Part]:
    pot, foot, rim = d.uniform(0.42, 0.52), d.uniform(0.26, 0.36), d.uniform(0.28, 0.38)
    parts = []
    for n in range(5):
        turn = (-0.25 + (n - 2) * d.uniform(0.085, 0.105)) * 2 * np.pi
        long, wide = d.uniform(1.0, 1.3), d.uniform(0.14, 0.19)
        leaf = oval(long / 2, 0, long / 2, wide, points=18)
        c, s = np.cos(turn), np.sin(turn)
        leaf = leaf @ np.array([[c, s], [-s, c]]) + np.array([0, rim])
        spine = bar(0, rim, 0.85 * long * c, rim + 0.85 * long * s, 0.05)
        parts += [Part(ACCENT, [leaf]), Part(DARK, [spine])]
    parts += [Part(BODY, [ring((-pot, rim), (pot, rim), (foot, 1), (-foot, 1))])]
    return [*parts, Part(DARK, [box(-pot - 0.06, rim - 0.06, pot + 0.06, rim + 0.1)])]


def wine_glass(d: Draws) -> list[Part]:
    wide, bowl, stem, full = d.uniform(0.45, 0.58), d.uniform(0.12, 0.25), d.uniform(0.09, 0.12), d.uniform(-0.6, -0.4)
    lip = d.uniform(0.8, 0.95)
    cup = np.concatenate([ring((-wide * lip, -1), (wide * lip, -1)), oval(0, -0.4, wide, bowl + 0.4, 0, 0.5, 16)])
    wine = np.concatenate(
        [ring((-wide * 0.88, full), (wide * 0.88, full)), oval(0, -0.38, wide * 0.85, bowl + 0.3, 0, 0.5, 16)]
    )
    parts = [Part(LIGHT, [cup]), Part(ACCENT, [wine]), Part(BODY, [box(-stem, bowl - 0.04, stem, 0.9)])]
    return [*parts, Part(BODY, [oval(0, 0.9, wide * 0.85, 0.12)])]


def cup(d: Draws) -> list[Part]:
    wide, foot, side = d.uniform(0.6, 0.7), d.uniform(0.45, 0.6), d.uniform(0.28, 0.4)
    handle = [oval(wide - 0.02, 0.05, side + 0.12, 0.45), oval(wide - 0.02, 0.05, side - 0.06, 0.26)]
    wall = np.concatenate([ring((-wide, -0.7), (wide, -0.7)), oval(0, 0.68, foot, 0.2, 0, 0.5, 12)])
    parts = [Part(BODY, handle), Part(BODY, [wall]), Part(DARK, [oval(0, -0.7, wide, 0.17)])]
    stripe = d.uniform(-0.15, 0.15)
    return [*parts, Part(ACCENT, [box(-foot - 0.02, stripe, foot + 0.02, stripe + 0.22)])]


def tv(d: Draws) -> list[Part]:
    high, rim, foot = d.uniform(0.55, 0.68), d.uniform(0.08, 0.12), d.uniform(0.4, 0.6)
    screen = box(-1 + rim, -high + rim, 1 - rim, high - rim - 0.04)
    glare = ring((-0.75, -high + rim), (-0.3, -high + rim), (-0.62, high - rim - 0.04), (-0.9, high - rim - 0.04))
    parts = [Part(DARK, [box(-0.12, high - 0.05, 0.12, high + 0.22)]), Part(BODY, [plate(-1, -high, 1, high, 0.07)])]
    parts += [Part(DARK, [screen]), Part(LIGHT, [glare])]
    return [*parts, Part(BODY, [box(-foot, high + 0.2, foot, high + 0.32)])]


def laptop(d: Draws) -> list[Part]:
    high, deep, lean = d.uniform(0.95, 1.1), d.uniform(0.42, 0.6), d.uniform(0.18, 0.3)
    lid = plate(-0.75, 0.15 - high, 0.75, 0.18, 0.06)
    deck = ring((-0.75, 0.15), (0.75, 0.15), (0.75 + lean, 0.15 + deep), (-0.75 - lean, 0.15 + deep))
    keys = ring((-0.66, 0.22), (0.66, 0.22), (0.68 + lean * 0.4, 0.15 + deep * 0.58))
    keys = np.concatenate([keys, ring((-0.68 - lean * 0.4, 0.15 + deep * 0.58))])
    pad = ring(
        (-0.2, 0.15 + deep * 0.67), (0.2, 0.15 + deep * 0.67), (0.23, 0.15 + deep * 0.92), (-0.23, 0.15 + deep * 0.92)
    )
    parts = [Part(BODY, [lid]), Part(LIGHT, [box(-0.65, 0.25 - high, 0.65, 0.08)]), Part(BODY, [deck])]
    return [*parts, Part(DARK, [keys]), Part(DARK, [pad])]


def person(d: Draws) -> list[Part]:
    wide, hip, step, arm = d.uniform(0.26, 0.34), d.uniform(0.12, 0.22), d.uniform(0.1, 0.28), d.uniform(0.1, 0.42)
    parts = [Part(DARK, [bar(side * 0.11, hip - 0.05, side * step, 1, 0.19)]) for side in (-1, 1)]
    parts += [Part(BODY, [bar(side * (wide - 0.06), -0.4, side * (wide + arm), 0.12, 0.14)]) for side in (-1, 1)]
    parts += [Part(BODY, [plate(-wide, -0.5, wide, hip + 0.06, 0.1)]), Part(LIGHT, [box(-0.07, -0.6, 0.07, -0.46)])]
    return [*parts, Part(LIGHT, [oval(0, -0.77, 0.2, 0.23)]), Part(DARK, [oval(0, -0.83, 0.21, 0.19, 0.5, 1.0, 14)])]


# In the order of COCO's ids, which is the order of class indices everywhere: person is class 0.
CATEGORIES = (
    Category(1, "person", "person", person),
    Category(3, "car", "vehicle", car),
    Category(9, "boat", "vehicle", boat),
    Category(17, "cat", "animal", cat),
    Category(25, "giraffe", "animal", giraffe),
    Category(46, "wine glass", "kitchen", wine_glass),
    Category(47, "cup", "kitchen", cup),
    Category(59, "pizza", "food", pizza),
    Category(60, "donut", "food", donut),
    Category(62, "chair", "furniture", chair),
    Category(64, "potted plant", "furniture", potted_plant),
    Category(72, "tv", "electronic", tv),
    Category(73, "laptop", "electronic", laptop),
)
