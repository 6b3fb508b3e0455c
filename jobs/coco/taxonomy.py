"""Taxonomy files: YAML in, stages.coco.taxonomy.Taxonomy out, with errors that name the field."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jobs.config import Section, load_config
from pipeline.errors import UsageError
from stages.coco.taxonomy import Taxonomy

PAPER = Path(__file__).parents[1] / "taxonomies" / "coco-paper.yaml"


class TaxonomyFile(Section):
    """The fields of a taxonomy file; see jobs/taxonomies/coco-paper.yaml, where each is explained."""

    public: tuple[str, ...] = ()
    coarse: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    supercategories: dict[str, str] = Field(default_factory=dict)
    rename: dict[str, str] = Field(default_factory=dict)
    unlisted: Literal["refuse", "filter"] = "refuse"


def read_taxonomy(path: str | None) -> Taxonomy:
    """The taxonomy of a file; the paper's where none is named."""
    where = path or str(PAPER)
    given = load_config(TaxonomyFile, where)
    try:
        return Taxonomy(
            coarse=tuple(given.coarse.items()),
            public=given.public,
            supercategories=tuple(given.supercategories.items()),
            rename=tuple(given.rename.items()),
            unlisted=given.unlisted,
        )
    except ValueError as error:
        raise UsageError(str(error), where=where, cure="see jobs/taxonomies/coco-paper.yaml for an example") from None


def require_known(taxonomy: Taxonomy, categories: Sequence[Mapping[str, Any]], where: str) -> None:
    """UsageError where the taxonomy refuses classes it does not list and the file has some, with near names."""
    unknown = taxonomy.unknown([(str(c["name"]), str(c.get("supercategory") or "")) for c in categories])
    if not unknown or taxonomy.unlisted == "filter":
        return
    known = [fine for _, members in taxonomy.coarse for fine in members]
    near = {fine: difflib.get_close_matches(fine, known, 1, 0.8) for fine in unknown[:5]}
    told = ", ".join(f"{fine!r}" + (f" (did you mean {n[0]!r}?)" if n else "") for fine, n in near.items())
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    raise UsageError(
        f"the taxonomy has no coarse class for {told}{more}",
        where=where,
        cure="add them to the taxonomy file, or filter the images that show them with 'unlisted: filter' in it",
    )
