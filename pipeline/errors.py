"""The one error a user of Raylens is meant to see, and a cure that several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.redaction import redact_urls


class RaylensError(Exception):
    """A mistake or a failure told as a thing, a place and a cure; shown without a traceback.

    ``exit_code`` is what the command line exits with: 2 for bad usage or config, 1 for a failure on the way.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        # URLs with credentials or signatures in them are told all over: in logs, in events, in rows.
        self.what, self.where, self.cure = redact_urls(what), redact_urls(where), redact_urls(cure)
        super().__init__(self.__str__())

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.cure}" if self.cure else text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and these errors cross process borders.
        return (_rebuild, (type(self), self.what, self.where, self.cure))


def _rebuild(kind: type[RaylensError], what: str, where: str, cure: str) -> RaylensError:
    return kind(what, where=where, cure=cure)


class UsageError(RaylensError):
    """Bad usage or config: the user can mend it before anything runs."""

    exit_code = 2


def cure_of_change(then: Mapping[str, Any], now: Mapping[str, Any], elsewhere: str) -> str:
    """What to do where a step's fields are not those it was begun with: nobody can set a version back."""
    if then.get("version") != now.get("version"):
        return f"use the version of Raylens that began it, or {elsewhere}"
    return f"set these fields back, or {elsewhere}"
