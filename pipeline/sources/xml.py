"""The XML of PASCAL VOC, which ILSVRC uses too: one file an image, one <object> a box."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from pipeline.errors import UsageError
from pipeline.sources.table import check_corners

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Annotation:
    """One image's truth as its XML says it."""

    width: int | None  # None where the file says 0 or nothing
    height: int | None
    names: list[str]  # class of each object
    corners: np.ndarray  # float32 [objects, 4]: xmin, ymin, xmax, ymax as written
    difficult: list[bool]


class _DeclaredError(Exception):
    pass


class _Plain(ET.TreeBuilder):
    """Entities are how a small XML file becomes a large one; no annotation has any, in whatever encoding."""

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise _DeclaredError


def parse_annotation(content: bytes, where: str) -> Annotation:
    """Raises UsageError, naming the file and the field, for XML that is broken, declares entities or lacks a field."""
    try:
        root = ET.fromstring(content, parser=ET.XMLParser(target=_Plain()))
    except _DeclaredError:
        _fail(where, "declares a document type", "annotation files need none: remove it")
    except (ET.ParseError, ValueError) as error:
        _fail(where, f"is not valid XML (truncated?): {error}", "fetch the file again")
    names, corners, difficult = [], [], []
    for at, item in enumerate(root.iter("object")):
        name, box = item.findtext("name"), item.find("bndbox")
        if name is None or not name.strip() or box is None:
            _fail(where, f"object {at} has no <name> or no <bndbox>", "add it")
        names.append(name.strip())
        corners.append([_number(box.findtext(corner), where, f"object {at}, {corner}") for corner in _CORNERS])
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    array = np.array(corners, np.float32).reshape(-1, 4)
    check_corners(array, lambda i: f"object {i}", where)
    return Annotation(_side(root, "width", where), _side(root, "height", where), names, array, difficult)


def _side(root: ET.Element, side: str, where: str) -> int | None:
    text = root.findtext(f"size/{side}")
    if text is None or not text.strip():
        return None
    value = _number(text, where, f"size/{side}")
    if not 0 <= value < 2**31:
        _fail(where, f"size/{side} is {text.strip()}", "write pixels")
    return int(value) or None


def _number(text: str | None, where: str, field: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        _fail(where, f"{field} is {text!r}, not a number", "write pixels")


def _fail(where: str, what: str, cure: str) -> NoReturn:
    raise UsageError(what, where=where, cure=cure)
