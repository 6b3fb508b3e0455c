"""Folders of files that are committed by a receipt, and the newest three of them as a training's checkpoints.

Data files are named by their content and written whole; ``receipt.json``, created last, is the commit. A reader goes
through the receipt and believes only what has the hash it names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RaylensError
from pipeline.storage import Folder

RECEIPT = "receipt.json"
_PLAIN_NAME = re.compile(r"[^/\\\x00.][^/\\\x00]*")  # stays in its folder
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Committed:
    files: dict[str, bytes]  # by the name they were committed under
    digest: str  # sha256 over names and hashes


class DamagedError(RaylensError):
    """A committed file is gone or not what its receipt says."""


def commit(folder: Folder, files: Mapping[str, bytes]) -> bool:
    """Writes the files, then the receipt; of two that race, one wins. Says whether this call's receipt stands."""
    entries = {}
    for name, data in files.items():
        sha = hashlib.sha256(data).hexdigest()
        stem, dot, suffix = name.rpartition(".")
        stored = f"{stem}-{sha[:8]}.{suffix}" if dot else f"{name}-{sha[:8]}"
        entries[name] = {"file": stored, "bytes": len(data), "sha256": sha}
        folder.write(stored, data)
    receipt = json.dumps({"files": entries}, indent=1, sort_keys=True).encode()
    if folder.create(RECEIPT, receipt):
        return True
    kept = {entry["file"] for entry in _receipt(folder).values()}
    for entry in entries.values():
        if entry["file"] not in kept:
            folder.remove(str(entry["file"]))
    return False


def read_committed(folder: Folder) -> Committed | None:
    """What was committed here, verified; None where there is no receipt.

    Raises:
        DamagedError: a file is missing, or its bytes or hash are not the receipt's; names the file.
    """
    try:
        entries = _receipt(folder)
    except FileNotFoundError:
        return None
    files, total = {}, hashlib.sha256()
    for name, entry in sorted(entries.items()):
        files[name] = _verified(folder, entry)
        total.update(name.encode() + b"\0" + bytes.fromhex(entry["sha256"]))
    return Committed(files, total.hexdigest())


def read_one(folder: Folder, name: str) -> bytes | None:
    """One of the files that were committed here, verified, without the others; None where there is no receipt.

    Raises:
        DamagedError: the receipt does not name it, or it is not what the receipt says.
    """
    try:
        entries = _receipt(folder)
    except FileNotFoundError:
        return None
    if name not in entries:
        raise _damaged(folder, RECEIPT, f"names no {name}")
    return _verified(folder, entries[name])


def _verified(folder: Folder, entry: Mapping[str, Any]) -> bytes:
    try:
        data = folder.read(entry["file"])
    except FileNotFoundError:
        raise _damaged(folder, entry["file"], "is missing") from None
    if len(data) != entry["bytes"]:
        raise _damaged(folder, entry["file"], f"has {len(data)} bytes instead of {entry['bytes']}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _damaged(folder, entry["file"], "does not have the hash in its receipt")
    return data


def digest_of(folder: Folder) -> str | None:
    """The digest of what was committed here, by its receipt alone; None where there is none.

    Raises:
        DamagedError: the receipt cannot be read, or a file is missing or has another size.
    """
    try:
        entries = _receipt(folder)
    except FileNotFoundError:
        return None
    here, total = folder.list(), hashlib.sha256()
    for name, entry in sorted(entries.items()):
        if here.get(entry["file"]) != entry["bytes"]:
            found = f"has {here[entry['file']]} bytes" if entry["file"] in here else "is missing"
            raise _damaged(folder, entry["file"], found)
        total.update(name.encode() + b"\0" + bytes.fromhex(entry["sha256"]))
    return total.hexdigest()


def leftovers(folder: Folder) -> list[str]:
    """Files here that no receipt names: of a writer that was killed, or lost a race."""
    try:
        kept = {RECEIPT, *(str(entry["file"]) for entry in _receipt(folder).values())}
    except FileNotFoundError:
        kept = set()
    except DamagedError:  # it is not known what the files are
        return []
    return sorted([*(name for name in folder.list() if name not in kept), *folder.leftovers()])


def withdraw(folder: Folder) -> None:
    """Take back what was committed here. The receipt first: what is half removed was never committed."""
    folder.remove(RECEIPT)
    for name in folder.list():
        folder.remove(name)
    with contextlib.suppress(OSError):
        folder.fs.rmdir(folder.root)


def _damaged(folder: Folder, file: str, how: str) -> DamagedError:
    return DamagedError(
        f"{file} {how}",
        where=folder.url,
        cure="'raylens verify --repair RUN', or remove it; the next run makes it anew",
    )


def _receipt(folder: Folder) -> dict[str, Any]:
    try:
        entries = json.loads(folder.read(RECEIPT))["files"]
        for entry in entries.values():
            if not _PLAIN_NAME.fullmatch(entry["file"]) or not _SHA256.fullmatch(entry["sha256"]):
                raise ValueError("a file's name or hash is none")
            if not isinstance(entry["bytes"], int):
                raise TypeError("a size is no number")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, RECEIPT, "cannot be read") from error
    return dict(entries)


class CommittedCheckpoints:
    """``RUN/<training>/checkpoints/<epoch>/``: files, then a receipt; the newest ``keep`` stay."""

    def __init__(self, folder: Folder, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep
        self.refused: list[str] = []  # what the last ``latest`` would not take, newest first

    def save(self, epoch: int, files: Mapping[str, bytes]) -> None:
        """Commits a checkpoint, replacing one of the same epoch that was refused before."""
        place = self.folder.child(f"{epoch:04d}")
        if place.exists(RECEIPT) and not _whole(place):
            withdraw(place)
        commit(place, files)
        for old in self.epochs()[self.keep :]:
            withdraw(self.folder.child(f"{old:04d}"))

    def newest(self) -> int:
        """The epoch of the newest checkpoint, whole or not; 0 where there is none."""
        return next(iter(self.epochs()), 0)

    def latest(self) -> tuple[int, dict[str, bytes]] | None:
        """The newest checkpoint that verifies, or None; the ones refused are named in ``refused``."""
        self.refused = []
        for epoch in self.epochs():
            try:
                found = read_committed(self.folder.child(f"{epoch:04d}"))
            except DamagedError as error:
                self.refused.append(f"checkpoint {epoch} refused: {error.what} ({error.where})")
                continue
            if found is not None:
                return epoch, found.files
        return None

    def epochs(self) -> list[int]:
        """Committed epochs, newest first."""
        names = [name for name in self.folder.folders() if name.isdigit()]
        return sorted((int(name) for name in names if self.folder.child(name).exists(RECEIPT)), reverse=True)


def _whole(place: Folder) -> bool:
    try:
        return read_committed(place) is not None
    except DamagedError:
        return False
