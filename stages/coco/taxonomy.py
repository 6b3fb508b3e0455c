"""Fine classes, the coarse class of each, and the public classes that label nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal


@dataclass(frozen=True)
class Taxonomy:
    """The rule's vocabulary; pairs instead of mappings, so that it is frozen and has an order.

    ``coarse``: (coarse name, its fine classes); ``supercategories``: (supercategory of the file, coarse name), asked
    where ``coarse`` does not name a class; ``rename``: (fine class, its name in the results). Coarse classes have the
    order in which they are named first. ValueError where a class has two places.
    """

    coarse: tuple[tuple[str, tuple[str, ...]], ...] = ()
    public: tuple[str, ...] = ()
    supercategories: tuple[tuple[str, str], ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    unlisted: Literal["refuse", "filter"] = "refuse"

    def __post_init__(self) -> None:
        if not self.coarse_names:
            raise ValueError("the taxonomy names no coarse class: give it 'coarse' or 'supercategories'")
        for what, names in (
            ("coarse class", [name for name, _ in self.coarse]),
            ("fine class", [fine for _, members in self.coarse for fine in members] + list(self.public)),
            ("supercategory", [name for name, _ in self.supercategories]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"the taxonomy names the {what} {', '.join(map(repr, twice))} twice")

    @cached_property
    def coarse_names(self) -> tuple[str, ...]:
        """Coarse classes in the order of their indexes."""
        return tuple(dict.fromkeys([*(name for name, _ in self.coarse), *(name for _, name in self.supercategories)]))

    @cached_property
    def _listed(self) -> dict[str, str]:
        return {fine: name for name, members in self.coarse for fine in members}

    @cached_property
    def _renamed(self) -> dict[str, str]:
        return dict(self.rename)

    @cached_property
    def _indexes(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.coarse_names)}

    def is_public(self, fine: str) -> bool:
        return fine in self.public

    def coarse_index(self, fine: str, supercategory: str = "") -> int | None:
        """The index of a fine class's coarse class; None for a public class and one the taxonomy does not know."""
        if fine in self.public:
            return None
        name = self._listed.get(fine) or dict(self.supercategories).get(supercategory)
        return None if name is None else self._indexes[name]

    def name(self, fine: str) -> str:
        """What a fine class is called in the results."""
        return self._renamed.get(fine, fine)

    def unknown(self, classes: Iterable[tuple[str, str]]) -> list[str]:
        """Those of (fine, supercategory) that have no coarse class and are not public."""
        return [f for f, s in classes if not self.is_public(f) and self.coarse_index(f, s) is None]
