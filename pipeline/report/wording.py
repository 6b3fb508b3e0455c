"""Values and names as words on a page."""

from __future__ import annotations

import math
import re
from typing import Any

NOTHING = "–"


def show(value: Any, digits: int | None = None) -> str:
    """A value as a reader wants it: thousands apart, a true minus, a dash for nothing (None, NaN)."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        if math.isnan(value):
            return NOTHING
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        text = f"{value:,.{digits}f}" if digits is not None else f"{value:.3g}"
        if not any(c in "123456789" for c in text):
            text = text.lstrip("-")
        return text.replace("-", "−")
    return str(value)


def counted(count: int, noun: str) -> str:
    """A count and its noun, with an s where there is not exactly one."""
    return f"{show(count)} {noun}{'' if count == 1 else 's'}"


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters, on one line."""
    text = " ".join(printable(str(text)).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def printable(text: str) -> str:
    """Bytes that were no UTF-8 in a file name arrive as lone surrogates, which no UTF-8 file may hold: shown as \\xNN.

    Other control characters, which HTML and fonts refuse, become the replacement character.
    """
    text = re.sub(r"[\ud800-\udfff]", lambda m: f"\\x{ord(m[0]) & 0xFF:02x}", text)
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", text)
