"""Class names: their order is what a label means."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.sources.files import absolute, read_lines

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Classes:
    """Names in label order, and every spelling a source may use for each."""

    names: list[str]
    where: str = ""
    spellings: dict[str, int] = field(default_factory=dict)

    def index(self, spelling: str, where: str) -> int:
        """The label. Raises UsageError, with near matches, where no class is spelt so."""
        found = self.spellings.get(spelling)
        if found is None:
            raise self.unknown(spelling, where)
        return found

    def unknown(self, spelling: str, where: str) -> UsageError:
        near = difflib.get_close_matches(spelling, list(self.spellings), 3)
        cure = f"did you mean {' or '.join(map(repr, near))}?" if near else f"add it to the classes{self._origin()}"
        return UsageError(f"the class {spelling!r} is not among the {len(self.names)} known", where=where, cure=cure)

    def _origin(self) -> str:
        return f" in {self.where}" if self.where else ""

    def look_up(self, spelt: pa.Array, where: str, keys: pa.Array) -> pa.Array:
        """Labels, int32 [n], of spellings [n]; null stays null. Raises UsageError naming the first unknown's key."""
        encoded = spelt.dictionary_encode()
        known = [self.spellings.get(word) for word in encoded.dictionary.to_pylist()]
        labels = pa.array(known, pa.int32()).take(encoded.indices)
        if labels.null_count > spelt.null_count:
            at = pc.index(pc.and_(pc.is_valid(spelt), pc.is_null(labels)), True).as_py()
            raise self.unknown(spelt[at].as_py(), f"{where}, {keys[at].as_py()!r}")
        return labels


def read_classes(given: str | list[str]) -> Classes:
    """Classes from a list of names, or from a file with one class a line in label order.

    A line is a name; or an id and a name, where every line begins with a WordNet id (``n01440764 tench, Tinca tinca``)
    or every line has a tab. Labels may then be spelt as id, as name, or as the name's first synonym, where unambiguous.
    Raises UsageError where there is no class or an id stands twice.
    """
    where = ""
    if isinstance(given, str):
        where = absolute(given)
        given = read_lines(where)
    place = where or "classes"
    if not given:
        raise UsageError("there is no class", where=place, cure="write one class name a line, in label order")
    words = [line.split(maxsplit=1) for line in given]
    if all(pair and _WNID.fullmatch(pair[0]) for pair in words):
        ids, names = [pair[0] for pair in words], [pair[-1] for pair in words]
    elif all("\t" in line for line in given):
        ids, names = [line.split("\t")[0].strip() for line in given], [line.split("\t")[1].strip() for line in given]
    else:
        ids, names = given, given
    seen: dict[str, int] = {}
    for i, spelling in enumerate(ids):
        if spelling in seen:
            raise UsageError(
                f"line {i + 1}: the class {spelling!r} already stands on line {seen[spelling] + 1}",
                where=place,
                cure="each class once: labels are line numbers from 0",
            )
        seen[spelling] = i
    return Classes(names, where, _unambiguous(names) | seen)


def _unambiguous(names: list[str]) -> dict[str, int]:
    """Spellings by name and first synonym; ImageNet's two cranes answer to neither."""
    full: dict[str, set[int]] = {}
    for i, name in enumerate(names):
        for spelling in {name, name.split(",")[0]}:
            full.setdefault(spelling, set()).add(i)
    return {spelling: min(indexes) for spelling, indexes in full.items() if len(indexes) == 1}
