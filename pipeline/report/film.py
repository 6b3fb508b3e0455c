"""A process as a film: steps from left to right, each a picture with what led to it above and what follows below."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipeline.report.blocks import Picture

_COLOUR = re.compile(r"#[0-9a-f]{6}\Z")


@dataclass(frozen=True)
class Frame:
    """One step. Above its picture a ``swatch`` (a colour as #rrggbb) and what is ``said``, below it another one."""

    heading: str
    picture: Picture
    swatch: str = ""
    said: str = ""
    below: Picture | None = None

    def __post_init__(self) -> None:
        if self.swatch and not _COLOUR.match(self.swatch):
            raise ValueError(f"a swatch is a colour as #rrggbb, not {self.swatch!r}")


@dataclass(frozen=True)
class Film:
    """The steps in order, in as many rows as a page is narrow."""

    kind: ClassVar[str] = "film"
    frames: Sequence[Frame]
    caption: str
    title: str = ""
