"""The demo's asking part in full: what the network that asks gains from it, beside others on the same scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import asking
from jobs.asking import evaluate
from jobs.config import check
from jobs.demo.asking import asking_config

Rows = list[dict[str, Any]]


def evaluation_config(root: Path) -> asking.AskingConfig:
    """The demo's asking job in full, evaluated on the scenes it asks about, whose objects are drawn."""
    values = asking_config(root, full=True).model_dump(mode="json")
    values |= {"task": "evaluate", "data": values["data"] | {"segmented": {"images": values["data"]["ask"]}}}
    return check(asking.AskingConfig, values, where="demo")


def evaluated(root: Path, say: Callable[[str], None]) -> int:
    """RUN/asking goes on: its network beside those that are told at points or nothing, and what should be so."""
    config = evaluation_config(root)
    outcome = asking.run(config, str(root / "asking"), config.options(say=say))

    def rows(step: str) -> Rows:
        path = root / "asking" / step / outcome.fingerprints[step][:8] / "metrics.json"
        return list(json.loads(path.read_text())["rows"])

    say("\nwhat asking is good for, on scenes none of the networks saw:")
    tables = (rows(step) for step in (evaluate.TABLE, evaluate.ORDER, evaluate.CLASSES))
    for claim, holds, told in claims(*tables):
        say(f"  {'holds' if holds else 'DOES NOT HOLD'}: {claim} ({told})")
    return outcome.exit_code


def claims(table: Rows, order: Rows, classes: Rows) -> list[tuple[str, bool, str]]:
    """What the method promises, whether it is so in these tables, and the numbers: means with standard errors."""
    asked = [row for row in table if row["method"] == "asked" and row["answers"]]
    random = [row for row in table if row["method"] == "points_random" and row["answers"]]
    first = next(row for row in order if row["question"] == 1)
    drawn = next(row for row in classes if row["network"] == "asked" and row["question"] == 0)
    return [
        (
            "each answer raises PSNR by more than its standard error",
            all(row["gain"] > row["gain_se"] for row in asked),
            ", ".join(_told(row, "gain") for row in asked) + " dB",
        ),
        (
            "the first answer gives the most",
            all(row["gain"] < asked[0]["gain"] for row in asked[1:]),
            ", ".join(f"{row['gain']:+.2f}" for row in asked) + " dB",
        ),
        (
            "answers that are asked for beat hints at random points",
            all(row["behind"] > row["behind_se"] for row in random),
            "ahead by " + ", ".join(_told(row, "behind") for row in random) + " dB",
        ),
        (
            "what is asked first is harder than the picture's mean",
            first["above"] > first["above_se"],
            f"error {first['error']:.3f}, above the mean by {_told(first, 'above', digits=4)}",
        ),
        (
            "questions cover one class more than regions of the same area at random places",
            drawn["above"] > drawn["above_se"],
            f"{100 * drawn['precision']:.1f} %, {_told(drawn, 'above', 100)} points above",
        ),
    ]


def _told(row: dict[str, Any], name: str, scale: float = 1.0, digits: int = 2) -> str:
    return f"{scale * row[name]:+.{digits}f} ± {scale * row[f'{name}_se']:.{digits}f}"
