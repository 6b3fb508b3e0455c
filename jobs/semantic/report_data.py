"""What the semantic job's page is built from: plain values, gathered from a run or made up by a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.semantic.config import SemanticConfig
from jobs.semantic.variants import Variant
from stages.semantic.rules import MEANING

KINDS = {"focal": "focal loss", "bce": "BCE", "coarse": "coarse only"}
COLOURS = {"focal loss": "#2f6fb7", "BCE": "#d9601a", "coarse only": "#8a929c"}

# PROTOCOLS section 3: coarse accuracy of the baseline, and IA, IP, IR, IF1 of both losses.
PAPER: Mapping[str, Mapping[str, Any]] = {
    "vgg16": {"coarse": 0.8457, "focal": (0.6502, 0.9947, 0.7544, 0.8586), "bce": (0.4947, 1.0, 0.6146, 0.7567)},
    "resnet34": {"coarse": 0.8655, "focal": (0.6841, 0.9981, 0.7774, 0.8715), "bce": (0.5856, 1.0, 0.6799, 0.8044)},
    "densenet121": {"coarse": 0.8946, "focal": (0.7295, 0.9988, 0.8102, 0.8913), "bce": (0.5488, 1.0, 0.6632, 0.79)},
}
CASES = {
    "FTCT": "fine set and coarse class right",
    "FTCF": "fine set right, coarse class wrong",
    "FFCT": "fine set wrong, coarse class right",
    "FFCF": "both wrong",
}


@dataclass(frozen=True)
class Result:
    """One trained network: facts of its training, summary of its indexes; None while there are none."""

    variant: Variant
    facts: Mapping[str, Any] | None = None
    summary: Mapping[str, Any] | None = None  # by split

    @property
    def kind(self) -> str:
        return KINDS[self.variant.kind]

    @property
    def measured(self) -> Mapping[str, Any] | None:
        return None if self.summary is None else self.summary.get("eval")


@dataclass(frozen=True)
class Rows:
    """One evaluation step on one split: rows by how they ended, and the first that failed as (key, reason)."""

    network: str
    split: str
    rows: int
    ok: int
    failed: int
    failures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Path:
    """One image's way from fine scores to its coarse class; ``fine`` are (name, score, contribution), largest first."""

    key: str
    pixels: np.ndarray  # uint8 [H, W, 3]
    case: str
    true: Sequence[str]
    predicted: Sequence[str]
    coarse_true: str
    coarse: str
    fine: Sequence[tuple[str, float, float]]
    rest: float | None
    bias: float | None
    coarse_scores: Sequence[tuple[str, float]]  # best first


@dataclass(frozen=True)
class SemanticReportData:
    """Everything on the page; ``paths`` are of the network ``shown``."""

    run: str
    config: SemanticConfig
    described: Mapping[str, Any]
    fine: Sequence[str]
    coarse: Sequence[str]
    splits: Mapping[str, Mapping[str, Any]]  # split -> counts: split, images, kept, used, coarse {name: images}
    results: Sequence[Result]
    rows: Sequence[Rows] = ()
    paths: Sequence[Path] = ()
    shown: Result | None = None
    notes: Sequence[str] = ()


def rule_title(rule: str, config: SemanticConfig) -> str:
    told = {"threshold": f"score > {config.evaluation.threshold:g}"}
    told["relative"] = f"score ≥ {config.evaluation.relative:g} × the best one"
    return told.get(rule, MEANING[rule])


def best(results: Sequence[Result]) -> Result | None:
    """The network with the highest IA under its loss's own rule: what is shown in full."""
    judged = [r for r in results if r.measured and r.variant.rules]
    return max(judged, key=_ia, default=next((r for r in results if r.measured), None))


def _ia(result: Result) -> float:
    assert result.measured is not None
    return float(result.measured["rules"][result.variant.rules[0]]["set"]["IA"]["value"] or 0.0)
