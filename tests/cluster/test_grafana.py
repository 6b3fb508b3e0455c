"""The dashboard asks for what is measured, and for all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.meters import COUNTERS, GAUGES

ROOT = Path(__file__).resolve().parents[2]


def test_every_panel_asks_for_metrics_that_exist_and_every_metric_has_a_panel() -> None:
    board = json.loads((ROOT / "jobs/grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    names = set(re.findall(r"ray_(raylens_\w+)", " ".join(asked)))
    # Ray's exporter puts ray_ before a name, and _total behind a counter's.
    assert names == {f"{name}_total" for name in COUNTERS} | set(GAUGES)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
