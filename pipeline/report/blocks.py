"""What a report page is made of: plain frozen data that knows no method and no HTML.

Every string here may come from a user (keys, class names, error messages): the template escapes all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pipeline.report.images import DataImage
from pipeline.report.wording import show

Tone = Literal["", "good", "warn", "bad", "muted"]

_TALL = 30  # rows; longer tables scroll inside a frame


@dataclass(frozen=True)
class Card:
    """One figure of the summary strip."""

    label: str
    value: str
    note: str = ""
    tone: Tone = ""
    unit: str = ""


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str
    muted: bool = False


@dataclass(frozen=True)
class Notice:
    """A box the reader must not miss ("warn", "bad") or may like to know ("", "good")."""

    kind: ClassVar[str] = "notice"
    title: str
    text: str = ""
    items: Sequence[str] = ()
    tone: Tone = "warn"


@dataclass(frozen=True)
class Facts:
    """Names and values, two columns."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Preformatted text: a resolved config, a traceback."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Details:
    """Blocks behind a summary line, closed until asked for; printed open."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence[Any]
    open: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot or a picture; ``alt`` says what it shows to those who cannot see it, ``caption`` how to read it."""

    kind: ClassVar[str] = "figure"
    image: DataImage
    alt: str
    caption: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("a figure needs an alternative text")


@dataclass(frozen=True)
class FigureRow:
    """Figures side by side where the page is wide enough."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Column:
    """``numeric`` aligns right; ``digits`` are decimals (None: shortest); ``best`` bolds the best value of a group."""

    title: str
    numeric: bool = False
    digits: int | None = None
    best: Literal["", "min", "max"] = ""
    unit: str = ""
    help: str = ""
    code: bool = False


@dataclass(frozen=True)
class Cell:
    """A value with its standard error, a small note, a tone; ``ranked`` False keeps it out of "best"."""

    value: Any
    se: float | None = None
    note: str = ""
    tone: Tone = ""
    ranked: bool = True


@dataclass(frozen=True)
class Group:
    """Rows under one heading; "best" is found within it."""

    rows: Sequence[Sequence[Any]]
    title: str = ""


@dataclass(frozen=True)
class ShownCell:
    text: str
    se: str
    note: str
    tone: str
    best: bool


@dataclass(frozen=True)
class Table:
    """Rows of values or Cells. The first column heads its row. ``tall`` scrolls inside a frame, header fixed."""

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    groups: Sequence[Group]
    caption: str
    note: str = ""
    _shown: list[list[list[ShownCell]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for group in self.groups:
            for row in group.rows:
                if len(row) != len(self.columns):
                    raise ValueError(
                        f"table {self.caption!r}: a row of {len(row)} cells under {len(self.columns)} columns"
                    )
        object.__setattr__(self, "_shown", [self._show(group) for group in self.groups])

    @property
    def tall(self) -> bool:
        return self.size > _TALL

    @property
    def size(self) -> int:
        return sum(len(group.rows) for group in self.groups)

    def shown(self) -> list[tuple[str, list[list[ShownCell]]]]:
        return [(group.title, rows) for group, rows in zip(self.groups, self._shown, strict=True)]

    def _show(self, group: Group) -> list[list[ShownCell]]:
        cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in group.rows]
        best = [self._best([row[i] for row in cells], column) for i, column in enumerate(self.columns)]
        return [
            [
                ShownCell(
                    text=show(cell.value, column.digits),
                    se="" if not _finite(cell.se) else f"±{show(cell.se, column.digits)}",
                    note=cell.note,
                    tone=cell.tone,
                    best=cell.ranked and _finite(cell.value) and best[i] is not None and _key(cell, column) == best[i],
                )
                for i, (cell, column) in enumerate(zip(row, self.columns, strict=True))
            ]
            for row in cells
        ]

    @staticmethod
    def _best(cells: Sequence[Cell], column: Column) -> float | None:
        values = [_key(c, column) for c in cells if c.ranked and _finite(c.value)]
        if not column.best or len(values) < 2:
            return None
        return min(values) if column.best == "min" else max(values)


@dataclass(frozen=True)
class Box:
    """A rectangle on a picture, in fractions of its width and height; drawn as vectors, so sharp at any zoom."""

    x0: float
    y0: float
    x1: float
    y1: float
    style: Literal["truth", "predicted"] = "truth"

    @classmethod
    def of_pixels(
        cls, box: Sequence[float], width: float, height: float, style: Literal["truth", "predicted"] = "truth"
    ) -> Box:
        """(x0, y0, x1, y1) in pixels of a width x height image, clipped to it."""
        x0, y0, x1, y1 = (float(v) for v in box)
        clip = lambda v: min(1.0, max(0.0, v))  # noqa: E731
        return cls(clip(x0 / width), clip(y0 / height), clip(x1 / width), clip(y1 / height), style)

    def corners(self) -> tuple[float, float, float, float]:
        """x, y, width, height in thousandths of the picture, as the template draws them."""
        x, y = round(self.x0 * 1000, 1), round(self.y0 * 1000, 1)
        return x, y, max(1.0, round(self.x1 * 1000 - x, 1)), max(1.0, round(self.y1 * 1000 - y, 1))


@dataclass(frozen=True)
class Picture:
    """One cell of a grid; without an image, ``missing`` says why."""

    image: DataImage | None
    alt: str
    boxes: Sequence[Box] = ()
    note: str = ""
    tone: Tone = ""
    missing: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("a picture needs an alternative text")


@dataclass(frozen=True)
class PictureRow:
    title: str
    pictures: Sequence[Picture]
    note: str = ""


@dataclass(frozen=True)
class PictureGrid:
    """One image per row, one method (or layer) per column."""

    kind: ClassVar[str] = "grid"
    headings: Sequence[str]
    rows: Sequence[PictureRow]
    caption: str
    title: str = ""
    legend: Sequence[Literal["truth", "predicted"]] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.pictures) != len(self.headings):
                raise ValueError(
                    f"grid {self.caption!r}: row {row.title!r} has {len(row.pictures)} pictures under "
                    f"{len(self.headings)} headings"
                )


@dataclass(frozen=True)
class Mount:
    """A place that one of the page's scripts fills, found by its ``name``; ``text`` stands there until then."""

    kind: ClassVar[str] = "mount"
    name: str
    text: str


@dataclass(frozen=True)
class Section:
    """A heading, one sentence that says what it is about, and blocks."""

    title: str
    blocks: Sequence[Any] = ()
    lead: str = ""


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _key(cell: Cell, column: Column) -> float:
    # Values that read the same are equally good: compare what is shown.
    return round(float(cell.value), column.digits if column.digits is not None else 12)
