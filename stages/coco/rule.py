"""Which images stay: those whose classes, public ones aside, share one coarse class (PROTOCOLS section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Why an image is filtered, as stored and as told.
REASONS = {
    "no_objects": "no object is annotated",
    "people_only": "only public classes are present",
    "several_coarse": "its classes belong to several coarse classes",
    "unlisted_class": "a class that the taxonomy does not know is present",
    "bad_annotation": "an annotation of it was rejected, so its labels are not known",
}


@dataclass(frozen=True)
class Reading:
    """How the rule is read: whether crowd regions count as objects, and whether people-only images stay."""

    crowds: bool = True
    people_only: bool = False

    def __str__(self) -> str:
        crowds = "crowds count" if self.crowds else "crowds do not count"
        return f"{crowds}, people-only {'kept' if self.people_only else 'dropped'}"


READINGS = tuple(Reading(crowds, people) for crowds in (True, False) for people in (False, True))


@dataclass(frozen=True)
class Present:
    """A class that an image shows."""

    index: int
    public: bool
    coarse: int | None  # None: public, or not in the taxonomy
    crowd_only: bool  # every region of it is a crowd


class Verdict(NamedTuple):
    """``fine``: indexes of the classes that label, rising; ``coarse``: of kept images, None of people-only ones."""

    fine: tuple[int, ...]
    coarse: int | None
    coarse_present: tuple[int, ...]
    reason: str | None  # a key of REASONS; None: kept


def judge(present: Sequence[Present], reading: Reading) -> Verdict:
    """The rule on one image. Public classes decide nothing: adding one changes neither fine nor coarse labels."""
    seen = [p for p in present if reading.crowds or not p.crowd_only]
    labelling = [p for p in seen if not p.public]
    fine = tuple(sorted(p.index for p in labelling))
    coarse = tuple(sorted({p.coarse for p in labelling if p.coarse is not None}))
    if not seen:
        reason: str | None = "no_objects"
    elif not labelling:
        reason = None if reading.people_only else "people_only"
    elif any(p.coarse is None for p in labelling):
        reason = "unlisted_class"
    else:
        reason = None if len(coarse) == 1 else "several_coarse"
    return Verdict(fine, coarse[0] if reason is None and coarse else None, coarse, reason)
