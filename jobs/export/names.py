"""Names of exported files: those of the images, inside the folder whatever a key holds."""

from __future__ import annotations

import csv
import hashlib
import re
import unicodedata
from pathlib import Path

_LONGEST = 160  # bytes of one part of a file name; most file systems take 255


class Names:
    """Names of files by keys of images. Those that could not be kept as they were are listed in names.csv."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.taken, self.changed = folder, set[str](), list[tuple[str, str]]()

    def of(self, key: str, path: str | None = None) -> str:
        """``path``: what the file is named by, where that is not the key itself."""
        wanted = key if path is None else path
        name = safe_name(wanted, self.taken)
        if name != _stem(wanted):
            self.changed.append((key, name))
        return name

    def write(self) -> int:
        """Returns how many files it wrote."""
        if not self.changed:
            return 0
        with open(file_in(self.folder, "names.csv"), "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("key", "name"), *self.changed])
        return 1


def safe_name(key: str, taken: set[str]) -> str:
    """A relative path without suffix for an image's key, the key's own where it can be.

    No part climbs, breaks a line or is longer than file systems take, and none is taken twice.
    """
    parts = [_part(part) for part in re.split(r"[/\\]+", _stem(key)) if part not in ("", ".", "..")]
    name = "/".join(parts) or f"image_{_hash(key)}"
    if _folded(name) in taken:
        name = f"{name}_{_hash(key)}"
    taken.add(_folded(name))
    return name


def _stem(key: str) -> str:
    return key.rpartition(".")[0] if "." in key.rpartition("/")[2][1:] else key


def _part(part: str) -> str:
    # Control characters, the separators of lines and paragraphs, halves of characters.
    plain = "".join("_" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in part)
    if len(plain.encode()) <= _LONGEST:
        return plain
    return f"{plain.encode()[: _LONGEST - 20].decode(errors='ignore')}_{_hash(part)}"


def _folded(name: str) -> str:
    """As file systems see it that tell apart neither cases nor how accents are written."""
    return unicodedata.normalize("NFC", name.casefold())


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=6).hexdigest()


def file_in(folder: Path, name: str) -> Path:
    """The path of a file of the export, its folder made. ValueError where it would lie outside."""
    path = folder / name
    if folder.resolve() not in path.resolve().parents:
        raise ValueError(f"the file name {name!r} leaves the folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
