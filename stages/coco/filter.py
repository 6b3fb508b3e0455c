"""Each image's labels at two levels, and whether the rule keeps it (PROTOCOLS section 3, Filter)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from stages.coco.rule import READINGS, REASONS, Present, Reading, judge
from stages.coco.taxonomy import Taxonomy
from stages.schema import column


@dataclass(frozen=True)
class CocoFilterConfig:
    taxonomy: Taxonomy
    reading: Reading


class CocoFilter:
    """One row for every image: kept ones are ``ok``, the others ``filtered`` with the reason in words in ``error``.

    Rows of the key table need ``file_name``, ``image_id``, ``width``, ``height``, ``classes`` (how many the split's
    file has), the lists ``labels``, ``names``, ``supercategories``, ``objects`` and ``crowds`` (aligned: one entry for
    each class present) and ``bad`` (why the annotations are not to be trusted, or None).
    """

    version = 1
    wants: ClassVar[Literal["records"]] = "records"

    def __init__(self, config: CocoFilterConfig) -> None:
        self.config = config

    @property
    def schema(self) -> pa.Schema:
        integers, texts = pa.list_(pa.int32()), pa.list_(pa.string())
        readings = "; ".join(str(reading) for reading in READINGS)
        return pa.schema(
            [
                column("file_name", pa.string(), "the image's file name in the annotation file"),
                column("image_id", pa.int64(), "the image's id in the annotation file"),
                column("width", pa.int32(), "width the annotation file gives", unit="pixels"),
                column("height", pa.int32(), "height the annotation file gives", unit="pixels"),
                column(
                    "fine", integers, "indexes of the classes that label the image, rising; public ones are left out"
                ),
                column("fine_names", texts, "names of these classes", shape="[fine]"),
                column("multi_hot", pa.list_(pa.int8()), "1 for each class in fine", shape="[classes]"),
                column("coarse", pa.int32(), "index of the coarse class; null where filtered or people-only"),
                column("coarse_name", pa.string(), "name of the coarse class"),
                column("coarse_present", integers, "indexes of all coarse classes present"),
                column("person", pa.bool_(), "a public class is present (person, in the paper's taxonomy)"),
                column("kept", pa.bool_(), "the rule keeps the image"),
                column("reason", pa.string(), f"why it is filtered: {', '.join(REASONS)}; null where kept"),
                column("objects", pa.int32(), "annotations that are no crowds"),
                column("crowd_objects", pa.int32(), "crowd annotations"),
                column("readings", pa.list_(pa.bool_()), f"kept under each reading: {readings}", shape="[4]"),
            ]
        )

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {}

    def setup(self, device: Any, inputs: Mapping[str, Any]) -> None:
        pass

    def micro_batch(self, device: Any) -> int:
        return 512

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [self._row(row) for row in batch["rows"] if row is not None]

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        taxonomy = self.config.taxonomy
        classes = zip(row["labels"], row["names"], row["supercategories"], row["objects"], strict=True)
        present = [
            Present(index, taxonomy.is_public(name), taxonomy.coarse_index(name, parent), crowd_only=objects == 0)
            for index, name, parent, objects in classes
        ]
        verdict = judge(present, self.config.reading)
        reason = "bad_annotation" if row["bad"] is not None else verdict.reason
        coarse = verdict.coarse if reason is None else None
        names = dict(zip(row["labels"], row["names"], strict=True))
        multi_hot = np.zeros(row["classes"], np.int8)
        multi_hot[list(verdict.fine)] = 1
        found: dict[str, Any] = {name: row[name] for name in ("file_name", "image_id", "width", "height")}
        found |= {
            "fine": verdict.fine,
            "fine_names": [taxonomy.name(names[i]) for i in verdict.fine],
            "multi_hot": multi_hot,
            "coarse": coarse,
            "coarse_name": None if coarse is None else taxonomy.coarse_names[coarse],
            "coarse_present": verdict.coarse_present,
            "person": any(p.public and (self.config.reading.crowds or not p.crowd_only) for p in present),
            "kept": reason is None,
            "reason": reason,
            "objects": sum(row["objects"]),
            "crowd_objects": sum(row["crowds"]),
            "readings": [row["bad"] is None and judge(present, r).reason is None for r in READINGS],
        }
        if reason is not None:
            found |= {"status": "filtered", "error": self._told(reason, verdict.coarse_present, present, names, row)}
        return found

    def _told(
        self,
        reason: str,
        coarse: tuple[int, ...],
        present: list[Present],
        names: Mapping[int, str],
        row: Mapping[str, Any],
    ) -> str:
        if reason == "several_coarse":
            return f"{REASONS[reason]}: {', '.join(self.config.taxonomy.coarse_names[i] for i in coarse)}"
        if reason == "unlisted_class":
            return (
                f"{REASONS[reason]}: {', '.join(names[p.index] for p in present if not p.public and p.coarse is None)}"
            )
        return f"{REASONS[reason]}: {row['bad']}" if reason == "bad_annotation" else REASONS[reason]
