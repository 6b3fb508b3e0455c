"""One committed file read without the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.checkpoints import DamagedError, commit, read_one
from pipeline.storage import Folder


def test_one_file_is_read_verified_whatever_has_become_of_the_others(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert read_one(folder, "facts.json") is None
    commit(folder, {"facts.json": b"{}", "weights.bin": b"large"})
    next(tmp_path.glob("weights-*")).unlink()
    assert read_one(folder, "facts.json") == b"{}"
    with pytest.raises(DamagedError, match=r"names no history\.json"):
        read_one(folder, "history.json")
    next(tmp_path.glob("facts-*")).write_bytes(b"[]")
    with pytest.raises(DamagedError, match="does not have the hash"):
        read_one(folder, "facts.json")
