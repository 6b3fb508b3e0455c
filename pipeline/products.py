"""Files that a job writes when its steps are done, each with a receipt beside it that says what it must be.

For what is one file by nature and may be too large for memory. ``NAME.receipt`` is written last: a file without one is
written again by the next run, and one that is not what its receipt says is withdrawn by ``verify --repair``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import IO, Any

from pipeline.storage import Folder

_SUFFIX = ".receipt"
_CHUNK = 8 * 2**20


class Writing:
    """An open file and what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0
        self.facts: dict[str, Any] = {}  # further fields of the receipt

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)


@dataclasses.dataclass(frozen=True)
class Product:
    """One file in a run folder."""

    folder: Folder
    name: str

    @property
    def path(self) -> str:
        return self.folder.path(self.name)

    def receipt(self) -> dict[str, Any] | None:
        """``name``, ``bytes``, ``sha256`` and facts; None unless the file is there with that size."""
        receipt = self._read()
        return receipt if receipt is not None and self.folder.size(self.name) == receipt["bytes"] else None

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writing]:
        """Written piece by piece; there, with its receipt, when the block ends well, else not."""
        for left in self.folder.leftovers():  # of a driver that was killed here
            if left.startswith(f".{self.name}."):
                self.folder.remove(left)
        with self.folder.stream(self.name) as file:
            writing = Writing(file)
            yield writing
        receipt = {"name": self.name, "bytes": writing.size, "sha256": writing.digest.hexdigest(), **writing.facts}
        self.folder.write(self.name + _SUFFIX, json.dumps(receipt, indent=1).encode())

    def write(self, data: bytes) -> None:
        """The whole file; what is there already stays."""
        receipt = self.receipt()
        if receipt is None or receipt["sha256"] != hashlib.sha256(data).hexdigest():
            self.folder.remove(self.name + _SUFFIX)
            with self.writing() as file:
                file.write(data)

    def wrong(self) -> str:
        """Why the file is not what its receipt says, every byte read; "" when all is well."""
        receipt = self._read()
        if receipt is None:
            return "its receipt cannot be read"
        found = hashlib.sha256()
        try:
            with self.folder.open(self.name) as file:
                while data := file.read(_CHUNK):
                    found.update(data)
        except FileNotFoundError:
            return "is missing"
        return "" if found.hexdigest() == receipt["sha256"] else "does not have the content its receipt vouches for"

    def withdraw(self) -> None:
        """The receipt first: what is half removed was never finished."""
        self.folder.remove(self.name + _SUFFIX)
        self.folder.remove(self.name)

    def _read(self) -> dict[str, Any] | None:
        try:
            receipt: dict[str, Any] = json.loads(self.folder.read(self.name + _SUFFIX))
            int(receipt["bytes"]), str(receipt["sha256"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return receipt


def products(folder: Folder) -> Iterator[Product]:
    """Every file here and in the folders right below that a receipt vouches for."""
    for place in (folder, *(folder.child(name) for name in folder.folders())):
        for name in place.list():
            if name.endswith(_SUFFIX):
                yield Product(place, name.removesuffix(_SUFFIX))
