"""From counted cases to the rows of the indexes' table, and to its summary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stages.semantic.intervals import Interval, if_name, over_batches, over_set, share
from stages.semantic.rules import CASES, ORACLES

if TYPE_CHECKING:
    from stages.semantic.indexes import Counts, SemanticIndexesConfig


def rows_of(split: str, counts: Counts, config: SemanticIndexesConfig) -> list[dict[str, Any]]:
    """One row per rule and aggregate; one without a rule where there is none."""
    images, right = int(counts.confusion.sum()), int(np.trace(counts.confusion))
    drawn = (config.resamples, config.confidence)
    common: dict[str, Any] = {
        "split": split,
        "images": images,
        "unlabelled": counts.unlabelled,
        "coarse_accuracy": asdict(share(right, images, *drawn, _seed(config, split, "coarse"))),
        "confusion": counts.confusion.ravel().tolist(),
    }
    if not config.rules:
        return [common | {"aggregate": "set"}]
    rows = []
    for r, rule in enumerate(config.rules):
        cases = counts.case_counts(r)
        exact = int(cases[0] + cases[1])
        seed = _seed(config, split, rule)
        names = ("fine_images", "fine_predicted", "fine_hits")
        mine = common | {
            "rule": rule,
            "oracle": rule in ORACLES,
            "cases": cases.tolist(),
            "fine_exact": asdict(share(exact, images, *drawn, _seed(config, split, rule, "fine"))),
            **{name: values.tolist() for name, values in zip(names, counts.fine[r], strict=True)},
        }
        found = over_set(cases, config.a, config.literal, *drawn, seed)
        rows.append(mine | {"aggregate": "set"} | _cells(found, config))
        if config.batch:
            batches = counts.batch_counts(r, config.batch)
            found, undefined = over_batches(batches, config.a, config.literal, *drawn, seed)
            lacking = [{"index": name, "batches": n} for name, n in undefined.items()]
            told = {"aggregate": "batches", "batches": len(batches), "undefined": lacking}
            rows.append(mine | told | _cells(found, config))
    return rows


def summarise(table: pa.Table, config: SemanticIndexesConfig) -> dict[str, Any]:
    """The table as JSON, with names for class ids; see `stages.semantic.indexes.SemanticIndexes`."""
    found: dict[str, Any] = {}
    for row in table.to_pylist():
        confusion = np.array(row["confusion"], dtype=np.int64).reshape(len(config.coarse_names), -1)
        split = found.setdefault(
            row["split"],
            {
                "images": row["images"],
                "unlabelled": row["unlabelled"],
                "coarse_accuracy": row["coarse_accuracy"],
                "confusion": confusion.tolist(),
                "coarse_classes": {
                    name: {"images": int(line.sum()), "right": int(line[i]), "accuracy": _share(line[i], line.sum())}
                    for i, (name, line) in enumerate(zip(config.coarse_names, confusion, strict=True))
                },
                "rules": {},
            },
        )
        if row["rule"] is None:
            continue
        rule = split["rules"].setdefault(
            row["rule"],
            {
                "oracle": row["oracle"],
                "cases": dict(zip(CASES, row["cases"], strict=True)),
                "fine_exact": row["fine_exact"],
                "fine_classes": _fine_classes(row, config),
            },
        )
        rule[row["aggregate"]] = {"IA": row["ia"], "IR": row["ir"], "IP": row["ip"]} | {
            "IF": {f"{entry.pop('a'):g}": entry for entry in row["f"]}
        }
        if row["aggregate"] == "batches":
            lacking = {entry["index"]: entry["batches"] for entry in row["undefined"]}
            rule["batches"] |= {"batches": row["batches"], "undefined": lacking}
    return found


def _cells(found: Mapping[str, Interval], config: SemanticIndexesConfig) -> dict[str, Any]:
    weighted = [{"a": a, **asdict(found[if_name(a)])} for a in config.a]
    return {name.lower(): asdict(found[name]) for name in ("IA", "IR", "IP")} | {"f": weighted}


def _fine_classes(row: Mapping[str, Any], config: SemanticIndexesConfig) -> dict[str, Any]:
    """By class: ``accuracy`` is the share of images where its presence or absence is said rightly."""
    counts = zip(config.fine_names, row["fine_images"], row["fine_predicted"], row["fine_hits"], strict=True)
    return {
        name: {
            "images": images,
            "predicted": said,
            "hits": hits,
            "accuracy": _share(row["images"] - images - said + 2 * hits, row["images"]),
            "recall": _share(hits, images),
            "precision": _share(hits, said),
        }
        for name, images, said, hits in counts
    }


def _share(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None


def _seed(config: SemanticIndexesConfig, *purpose: str) -> int:
    text = "\0".join((str(config.seed), *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
