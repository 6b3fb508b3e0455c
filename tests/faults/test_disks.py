"""Disks that are full or must not be written: one clear line, nothing lost, and later the rows of any other run."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from driving import bare_worker, files_of, rows_of
from fsspec.implementations.memory import MemoryFileSystem
from toys import toy_job

from pipeline.engine import execute
from pipeline.errors import RaylensError
from pipeline.lock import NAME, RunLock
from pipeline.options import Options, Resources
from pipeline.status import status
from pipeline.storage import Folder, StorageError
from pipeline.tasks import Task
from pipeline.verify import verify

pytestmark = pytest.mark.timeout(900)  # starts Ray, which a busy machine may do only at the third try

QUIET = Options(resources=Resources(shard_rows=24), say=lambda _: None)
KiB = 2**10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of 64 KiB, and how to mount it with other options."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts no tmpfs")

    def remount(option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)

    try:
        yield place, remount
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_disk_that_is_full_and_then_must_not_be_written(
    cluster: str, disk: tuple[Path, Callable[[str], None]], undisturbed: pa.Table
) -> None:
    (place, remount), run = disk, str(disk[0] / "run")
    with pytest.raises(RaylensError) as caught:
        execute(toy_job(200), run, QUIET)
    assert "no space is left" in str(caught.value)
    assert "nothing committed is lost" in str(caught.value)
    remount("size=16m")
    assert execute(toy_job(200), run, QUIET).exit_code == 0
    assert rows_of(run).equals(undisturbed)

    # What is done is read as ever from a folder that must not be written; what would write says why it does not.
    remount("ro")
    assert verify(run).ok
    assert status(run).complete
    for refused in (lambda: execute(toy_job(200), run, QUIET), lambda: verify(run, clean=True)):
        with pytest.raises(StorageError) as caught:
            refused()
        assert caught.value.what == "the file system is read-only"
        assert caught.value.cure
    with pytest.raises(StorageError, match="the file system is read-only"):
        execute(toy_job(200), str(place / "another"), QUIET)


def test_a_lock_that_could_not_be_removed_does_not_keep_its_own_process_out(
    disk: tuple[Path, Callable[[str], None]],
) -> None:
    (place, remount), folder = disk, Folder(str(disk[0]))
    with RunLock(folder), pytest.raises(RaylensError, match=f"process {os.getpid()}"), RunLock(folder):
        pass
    with RunLock(folder):
        remount("ro")
    assert (place / NAME).exists(), "it was removed after all: this test shows nothing"
    remount("rw")
    with RunLock(folder) as lock:
        lock.check()
    assert not (place / NAME).exists()


class SmallStore(MemoryFileSystem):
    """An object store of ``room`` bytes in all; what does not fit is refused as a disk does."""

    protocol = "small"
    store: dict = {}  # noqa: RUF012 - of the class, as fsspec's own
    pseudo_dirs = [""]  # noqa: RUF012
    room = 0

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        used = sum(file.getbuffer().nbytes for file in self.store.values())
        if used + len(value) > type(self).room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().pipe_file(path, value, mode=mode, **options)


def test_a_store_that_is_full_at_any_byte_keeps_what_is_committed(tmp_path: Path, undisturbed: pa.Table) -> None:
    """Room grows by a few bytes at a time: it runs out in a data file, in a receipt, and between the two."""
    fsspec.register_implementation("small", SmallStore, clobber=True)
    job, url = toy_job(200), "small://run"
    SmallStore.room = 64 * KiB
    worker = bare_worker(url, job.steps[0], job)
    refused, shard = 0, 0
    SmallStore.room = sum(len(data.getvalue()) for data in SmallStore.store.values())
    while shard < worker.work.plans["all"].shards:
        before = files_of(url)
        with contextlib.suppress(StorageError):
            worker.run(Task("all", shard))
            shard += 1
            continue
        assert files_of(url) == before, "a shard that was refused is there, or another is gone"
        with pytest.raises(StorageError, match="no space is left on the device"):
            worker.run(Task("all", shard))
        refused += 1
        SmallStore.room += 400
    worker.close()
    assert refused >= 2 * shard, "the store was hardly ever full: this test shows nothing"
    assert rows_of(url).equals(undisturbed)
    assert not worker.shards("all").orphans()
