"""Whole files and exclusive files, on a disk and on a store that is none."""

from __future__ import annotations

import errno
import multiprocessing as mp
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import Folder, StorageError, UnreachableError

SPAWN = mp.get_context("spawn")


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "a folder") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/a")


def test_absent_folder_is_empty(folder: Folder) -> None:
    assert folder.list() == {}
    assert list(folder.folders()) == []
    assert not folder.exists("x")
    assert folder.size("x") is None
    with pytest.raises(FileNotFoundError):
        folder.read("x")
    folder.remove("x")


def test_write_replaces_and_create_does_not(folder: Folder) -> None:
    folder.write("x", b"one")
    folder.write("x", b"two")
    assert folder.read("x") == b"two"
    assert folder.create("x", b"three") is False
    assert folder.read("x") == b"two"
    assert folder.create("y", b"") is True
    assert folder.list() == {"x": 3, "y": 0}
    assert folder.size("x") == 3
    folder.remove("x")
    assert folder.list() == {"y": 0}


def test_children_are_folders_and_nothing_is_made_before_a_write(folder: Folder) -> None:
    child = folder.child("b", "c")
    assert list(folder.folders()) == []
    child.write("x", b"1")
    child.child("d").write("y", b"22")
    assert list(folder.folders()) == ["b"]
    assert list(child.folders()) == ["d"]
    assert child.list() == {"x": 1}
    assert child.path("x") == f"{folder.url}/b/c/x"
    assert Folder(child.url).read("x") == b"1"


def test_folder_travels_to_another_process(folder: Folder) -> None:
    folder.write("x", b"1")
    assert pickle.loads(pickle.dumps(folder)).read("x") == b"1"


def test_names_with_spaces_and_other_scripts(folder: Folder) -> None:
    for name in ("n02 %20.jpg", "größe.json", "猫.bin", "a#b?c.txt"):
        assert folder.create(name, name.encode())
        assert folder.read(name) == name.encode()
    assert len(folder.list()) == 4


@pytest.mark.parametrize("refusal", [NotImplementedError, TypeError])
def test_the_first_stands_on_a_store_that_cannot_create_if_absent(
    monkeypatch: pytest.MonkeyPatch, refusal: type[Exception]
) -> None:
    folder = Folder(f"memory://plain-{uuid.uuid4().hex}")
    put = folder.fs.pipe_file

    def without_conditions(path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise refusal("no such mode")
        put(path, data)

    monkeypatch.setattr(folder.fs, "pipe_file", without_conditions)
    assert folder.create("receipt.json", b"first") is True
    assert folder.create("receipt.json", b"second") is False
    assert folder.create("receipt.json", b"first") is True, "its own, sent again"
    assert folder.read("receipt.json") == b"first"


@given(data=st.binary(max_size=1000))
def test_bytes_come_back_as_they_went(data: bytes) -> None:
    folder = Folder("memory://roundtrip/x")
    folder.write("f", data)
    assert folder.read("f") == data


def _create(url: str, together: Any, queue: Any, number: int) -> None:
    folder = Folder(url)
    for name in range(20):
        together.wait(60)
        queue.put((name, number, folder.create(str(name), bytes([number]) * 100_000)))


def test_of_processes_that_create_one_file_at_once_exactly_one_does(tmp_path: Path) -> None:
    together, queue = SPAWN.Barrier(3), SPAWN.Queue()
    racers = [SPAWN.Process(target=_create, args=(str(tmp_path), together, queue, n)) for n in range(3)]
    for racer in racers:
        racer.start()
    told = [queue.get(timeout=120) for _ in range(3 * 20)]
    for racer in racers:
        racer.join()
    for name in range(20):
        winners = [number for n, number, won in told if n == name and won]
        assert len(winners) == 1
        assert (tmp_path / str(name)).read_bytes() == bytes(winners) * 100_000
    assert len(list(tmp_path.iterdir())) == 20  # and no temporary file is left


def test_reader_never_meets_half_a_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.storage import Folder; f = Folder(sys.argv[1]);\n"
        "for i in range(300): f.write('x', bytes([65 + i % 26]) * (1 + i * 997 % 50000))"
    )
    Folder(str(tmp_path)).write("x", b"A")
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    reads = 0
    while writer.poll() is None:
        data = Folder(str(tmp_path)).read("x")
        assert len(set(data)) == 1
        reads += 1
    assert writer.returncode == 0
    assert reads > 0


def test_killed_writer_leaves_no_name_behind(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pipeline import storage\n"
        "os.fsync = lambda n: os.kill(os.getpid(), 9)\n"
        "storage.Folder(sys.argv[1]).write('x', b'1' * 1000)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert Folder(str(tmp_path)).list() == {}
    assert len(Folder(str(tmp_path)).leftovers()) == 1


@pytest.mark.parametrize("place", ["f", "f/a", "f/a/b"])
def test_file_in_the_way_of_a_folder_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "f").write_text("")
    folder = Folder(str(tmp_path / place))
    for act in (lambda: folder.write("x", b"1"), lambda: folder.create("x", b"1")):
        with pytest.raises(StorageError, match=r"is a file, not a folder[\s\S]*choose another folder"):
            act()
    assert not folder.exists("x")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        folder.list()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_serves_too(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))

    def no_link(source: str, target: str) -> None:
        assert Path(source).read_bytes() in (b"first", b"second"), "only a finished file gets the name"
        raise OSError(number, os.strerror(number), source, None, target)

    monkeypatch.setattr(os, "link", no_link)
    assert folder.create("receipt.json", b"first") is True
    assert folder.create("receipt.json", b"second") is False
    assert folder.read("receipt.json") == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["receipt.json"]


def test_a_full_disk_is_no_lack_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StorageError, match="no space is left"):
        Folder(str(tmp_path)).create("receipt.json", b"first")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    Folder(str(tmp_path)).write("x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


def test_name_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="too long"):
        Folder(str(tmp_path)).write("x" * 300, b"")


@pytest.mark.parametrize(("url", "cure"), [("s4://bucket/x", "use a local path"), ("nope://x", "use a local path")])
def test_unknown_protocol_is_told(url: str, cure: str) -> None:
    with pytest.raises(StorageError, match=cure):
        Folder(url)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_one_clear_error_and_leaves_old_files_whole(small_disk: Path) -> None:
    folder = Folder(str(small_disk))
    folder.write("x", b"old")
    for act in (lambda: folder.write("x", b"1" * 10**6), lambda: folder.create("y", b"1" * 10**6)):
        with pytest.raises(StorageError, match=r"no space is left[\s\S]*nothing committed is lost"):
            act()
    assert folder.read("x") == b"old"
    assert [p.name for p in small_disk.iterdir()] == ["x"]
    folder.write("x", b"new")  # and there is room again


def test_read_only_file_system_is_one_clear_error(small_disk: Path) -> None:
    folder = Folder(str(small_disk))
    folder.write("x", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for act in (lambda: folder.write("x", b"1"), lambda: folder.create("y", b"1"), lambda: folder.remove("x")):
        with pytest.raises(StorageError, match="read-only"):
            act()
    assert folder.read("x") == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_of_another_user_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"):
        Folder(str(tmp_path / "x")).write("x", b"")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_refusal_of_a_remote_store_is_told_too(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder("memory://refusing/x")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder.fs, "pipe_file", refuse, raising=False)
    with pytest.raises(StorageError, match="memory://refusing/x/f"):
        folder.write("f", b"")


def test_a_store_that_does_not_answer_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    settings = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in {**settings, "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    folder = Folder(f"s3://bucket-{uuid.uuid4().hex}/run")
    for ask in (
        folder.list,
        folder.folders,
        lambda: folder.read("x"),
        lambda: folder.create("x", b""),
        lambda: folder.write("x", b""),
        lambda: folder.exists("x"),
        lambda: folder.remove("x"),
    ):
        with pytest.raises(UnreachableError, match="the storage did not answer") as caught:
            ask()
        assert "s3://bucket-" in str(caught.value)
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), UnreachableError)


def test_a_streamed_file_is_there_as_a_whole_or_not_at_all(folder: Folder) -> None:
    with folder.stream("large") as file:
        for part in (b"one ", b"two"):
            file.write(part)
        assert not folder.exists("large")
    assert folder.read("large") == b"one two"

    def broken() -> None:
        with folder.stream("large") as file:
            file.write(b"half")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError):
        broken()
    assert folder.read("large") == b"one two", "the older file stays"
    assert list(folder.list()) == ["large"]
    assert folder.leftovers() == []
