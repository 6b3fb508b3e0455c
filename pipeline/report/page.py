"""One report page: blocks -> a single HTML file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from pipeline.errors import RaylensError
from pipeline.report.blocks import Card, Notice, Section
from pipeline.report.wording import printable

# Reports are mailed and kept: a page beyond this is a mistake of whoever chose the number of pictures.
SIZE_GOAL = 6_000_000
_POLICY = Markup("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


@dataclass(frozen=True)
class Page:
    """A report. ``warnings`` stand above everything; ``provenance`` blocks are behind a summary line at the end.

    A page that answers its reader names ``scripts`` that lie beside it; they and what they load run, nothing else does.
    ``style`` is CSS of ours, added to every page's.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    kicker: str = "Raylens report"
    cards: Sequence[Card] = ()
    warnings: Sequence[Notice] = ()
    provenance: Sequence[Any] = ()
    footer: str = ""
    scripts: Sequence[str] = ()
    style: str = ""

    def html(self) -> str:
        """The whole page: autoescaped, styles inline, images as data URIs, a policy that forbids loading.

        No script runs but ``scripts`` and those that they add.
        """
        anchors = _anchors([section.title for section in self.sections])
        text = _template().render(
            page=self,
            sections=list(zip(anchors, self.sections, strict=True)),
            style=_style() + Markup(self.style),
            policy=_policy(self.nonce) if self.scripts else _POLICY,
        )
        return printable(text)

    @property
    def nonce(self) -> str:
        """What marks the page's own scripts: it follows from all of the text, so no part of the text can hold it."""
        content = repr((self.title, self.subtitle, self.sections, self.provenance))
        return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:24]

    def bytes(self) -> bytes:
        return self.html().encode("utf-8")

    def write(self, path: str | Path) -> Path:
        """Write to a local file (parents made); other stores write :meth:`bytes` themselves. Returns the path."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.bytes())
        except OSError as error:
            raise RaylensError(
                f"the report cannot be written: {error.strerror or error}",
                where=str(path),
                cure="free some space or choose a folder you may write to",
            ) from error
        return path


def _policy(nonce: str) -> Markup:
    return _POLICY + Markup("; script-src 'nonce-{}' 'strict-dynamic'").format(nonce)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((files("pipeline.report") / "template.html").read_text(encoding="utf-8"))


@cache
def _style() -> Markup:
    # Our own package data, the only text that enters the page unescaped.
    return Markup((files("pipeline.report") / "style.css").read_text(encoding="utf-8"))


def _anchors(titles: Sequence[str]) -> list[str]:
    """Distinct ids made of plain letters, whatever the titles hold."""
    seen: dict[str, int] = {}
    anchors = []
    for title in titles:
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "section"
        seen[slug] = seen.get(slug, 0) + 1
        anchors.append(slug if seen[slug] == 1 else f"{slug}-{seen[slug]}")
    return anchors
