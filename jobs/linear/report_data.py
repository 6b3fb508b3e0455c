"""What the page of residual, layers and votes is built from: plain values, gathered by the job or made up by a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs.report.totals import StepTotals
from stages.preprocess import Preprocess

Row = Mapping[str, Any]

VIEWS = {"clean": ("Clean", "#2f6fb7"), "attacked": ("FGSM", "#d9601a")}


@dataclass(frozen=True)
class Interpreted:
    """One network: as the config names it, what the reduction told of it, and the rows of some images.

    ``summary`` are rows of stages.linear.shares or stages.linear.elections; ``examples`` pairs of a votes row and its
    key row. ``same_weights``: those the paper's figure was measured with.
    """

    name: str
    architecture: str
    weights: str
    preprocess: Preprocess
    classes: Sequence[str] = ()
    same_weights: bool = False
    summary: Sequence[Row] = ()
    examples: Sequence[tuple[Row, Row]] = ()

    def class_name(self, index: int | None) -> str:
        if index is None or index < 0:
            return "unknown"
        named = self.classes[index] if index < len(self.classes) else ""
        # Synset files hold every word of a class; the first names it.
        return named.split(",")[0] if named else f"class {index}"

    def found(self, name: str, view: str = "clean", kind: str | None = None) -> Row | None:
        """The summary's row of that name, where any image has the number."""
        rows = (r for r in self.summary if r["view"] == view and r["name"] == name)
        return next((r for r in rows if r["n"] and (kind is None or r["kind"] == kind)), None)

    def terms(self, view: str = "clean") -> list[Row]:
        """The image's term and every layer's, in the network's order."""
        return [r for r in self.summary if r["view"] == view and r.get("kind") in ("input", "term")]


@dataclass(frozen=True)
class LinearReportData:
    """Everything on the page; what is empty is said there.

    ``load`` gives the decoded image of a key row, uint8 [H, W, 3], and may raise OSError, ValueError or RaylensError.
    """

    run: str
    task: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    networks: Sequence[Interpreted]
    totals: Sequence[StepTotals]
    load: Callable[[Row], np.ndarray] | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def asked(self) -> Mapping[str, Any]:
        """The config's classify section."""
        found: Mapping[str, Any] = self.config["classify"]
        return found

    @property
    def attack(self) -> float:
        return float(self.asked["attack"])

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(VIEWS) if self.attack else ("clean",)

    @property
    def paper(self) -> bool:
        return bool(self.config["report"]["paper"])

    def view_title(self, view: str) -> str:
        return f"FGSM, {self.attack:g} grey levels" if view == "attacked" else VIEWS[view][0]
