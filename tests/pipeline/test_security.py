"""What files and addresses of others may not do: run code, choose what is read, take all memory, show up in secrets."""

from __future__ import annotations

import ast
import gzip
import json
import os
import pickle
import socket
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import torch

from jobs.config import JobConfig, load_config
from pipeline import images
from pipeline.checkpoints import DamagedError, read_committed
from pipeline.dataset import key_table
from pipeline.decode import prepare_row
from pipeline.errors import RaylensError, UsageError
from pipeline.events import Events
from pipeline.redaction import has_password
from pipeline.run import Run
from pipeline.shards import Receipt
from pipeline.sources import listed
from pipeline.sources.files import read
from pipeline.sources.xml import parse_annotation
from pipeline.steps import Job, Source
from pipeline.storage import Folder
from pipeline.weights import fetch, read_state
from pipeline.worker import _tell_failed

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t-never-written"


# Code


class Exploit:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_weights_is_run(tmp_path: Path) -> None:
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Exploit(tmp_path / "ran")))
    torch.save({"state_dict": {"w": torch.ones(2)}, "more": Exploit(tmp_path / "ran")}, tmp_path / "saved.pth")
    for path in (tmp_path / "raw.pth", tmp_path / "saved.pth"):
        with pytest.raises(UsageError, match="cannot be read as weights"):
            read_state(str(path))
    assert not (tmp_path / "ran").exists()


def test_nothing_in_a_config_is_run(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    for text in (f"label: !!python/object/apply:os.mkdir ['{tmp_path}/ran']", "label: !!python/name:os.system"):
        config.write_text(text)
        with pytest.raises(UsageError, match="YAML"):
            load_config(JobConfig, config)
    assert not (tmp_path / "ran").exists()


def test_no_line_of_ours_reads_pickles_evaluates_text_or_calls_a_shell() -> None:
    """torch.load with weights_only, yaml.load with a safe loader; numpy's files may hold pickles, so none is read."""
    found = []
    for path in [p for room in ("pipeline", "stages", "jobs") for p in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                bad = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & set(names)
            elif isinstance(node, ast.Call):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                bad = _bad_call(ast.unparse(node.func), given)
            else:
                continue
            found += [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in bad]
    assert found == []


def _bad_call(name: str, given: dict[str | None, str]) -> set[str]:
    bad = {name} & {
        "eval",
        "exec",
        "np.load",
        "numpy.load",
        "os.system",
        "os.popen",
        "yaml.unsafe_load",
        "torch.jit.load",
    }
    if name == "torch.load" and given.get("weights_only") != "True":
        bad.add(name)
    if name == "yaml.load" and given.get("Loader") != "_Loader":  # jobs.config's own, of SafeLoader
        bad.add(name)
    return bad | ({"shell=True"} if given.get("shell") == "True" else set())


# What is read


CLIMBS = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b.jpg",
    "file:///etc/passwd",
    "http://127.0.0.1/x.jpg",
    "a\\..\\b",
]


@pytest.mark.parametrize("name", CLIMBS)
def test_names_in_annotations_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    image = {"id": 1, "file_name": name, "width": 9, "height": 9}
    coco = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    (folder / "coco.json").write_text(json.dumps(coco))
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/trainval.txt").write_text(f"{name}\n")
    sources = [
        {"kind": "coco", "annotations": str(folder / "coco.json"), "images": str(folder)},
        {"kind": "voc", "root": str(folder)},
    ]
    if not name.startswith(("/", "file:", "http:")):  # a list may name whole paths and URLs: its writer means them
        (folder / "list.csv").write_text(f"uri,label\n{name},0\n")
        sources.append({"kind": "list", "path": str(folder / "list.csv"), "images": False})
    for source in sources:
        with pytest.raises(UsageError) as caught:
            key_table(source)
        assert name in str(caught.value) or repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", ".hidden", "blobs/../../x", ""])
def test_names_in_receipts_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    file = {"name": name, "bytes": 1, "sha256": "a" * 64}
    with pytest.raises(RaylensError, match="cannot be read"):
        Receipt.from_json(json.dumps({"shard": 0, "files": [file], "rows": {"ok": 1}}).encode())
    receipt = {"files": {"model": {"file": name, "bytes": 1, "sha256": "a" * 64}}}
    (tmp_path / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(DamagedError, match="cannot be read"):
        read_committed(Folder(str(tmp_path)))


# Memory


def test_small_files_do_not_become_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, lists and XML that unpack to much more than they are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"note\x00\x00" + zlib.compress(bytes(2**26)))
    small = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    for body in (head + chunk(b"IDAT", zlib.compress(bytes(2**16))), small + text):
        found = images.decode(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
        assert isinstance(found, images.DecodeError)

    monkeypatch.setattr(listed, "MAX_TEXT_BYTES", 2**20)
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(b"uri,label\n" + b"a.jpg,0\n" * 2**18))
    with pytest.raises(UsageError, match="unpacks to more than"):
        key_table({"kind": "list", "path": str(tmp_path / "list.csv.gz"), "images": False})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_xml_declares_no_entities_in_any_encoding(encoding: str) -> None:
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 9))
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]><a>&l8;</a>'
    with pytest.raises(UsageError, match="declares a document type"):
        parse_annotation(text.encode(encoding), "a.xml")


# Addresses


@pytest.fixture
def endless() -> Iterator[str]:
    """A server whose answers do not end, whatever it announced (``?announced=10``)."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            if announced := self.path.partition("announced=")[2]:
                self.send_header("Content-Length", announced)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(2**16))
            except OSError:
                pass

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_what_is_downloaded_has_a_limit_and_is_nobody_elses_to_read(tmp_path: Path, endless: str) -> None:
    with pytest.raises(UsageError, match="more than"):
        fetch(f"{endless}/weights.pth", 2**20, str(tmp_path))
    assert list(tmp_path.iterdir()) == [], "no part of it is left"


@pytest.mark.parametrize("announced", [None, 10])
def test_what_is_read_has_a_limit_whatever_a_server_or_a_store_says_of_its_size(
    endless: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, announced: int | None
) -> None:
    with pytest.raises(UsageError, match="bytes are more than"):
        read(f"{endless}/list.csv{f'?announced={announced}' if announced else ''}", 2**20)
    memory = fsspec.filesystem("memory")
    memory.pipe("/unsized/w.pth", bytes(2**20 + 1))
    monkeypatch.setattr(type(memory), "size", lambda *_: announced)
    with pytest.raises(UsageError, match="more than"):
        fetch("memory://unsized/w.pth", 2**20, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_config_without_addresses_opens_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: Any) -> None:
        raise AssertionError(f"connects to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").write_bytes(b"x")
    assert key_table({"kind": "folder", "root": str(tmp_path)}).num_rows == 1
    (tmp_path / "config.yaml").write_text("run: runs/x\n")
    load_config(JobConfig, tmp_path / "config.yaml")


# Secrets


def test_addresses_with_passwords_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    url = f"https://user:{SECRET}@host"
    (tmp_path / "list.csv").write_text(f"uri,label\n{url}/a.jpg,0\n")
    refused = [
        lambda: Folder(f"{url}/run"),
        lambda: fetch(f"{url}/w.pth", 1),
        lambda: key_table({"kind": "list", "path": f"{url}/list.csv"}),
        lambda: key_table({"kind": "list", "path": str(tmp_path / "list.csv"), "images": False}),
    ]
    for call in refused:
        with pytest.raises(RaylensError, match="password") as caught:
            call()
        assert SECRET not in str(caught.value)
        assert "environment" in caught.value.cure
    assert has_password("simplecache::https://user:word@host/x")
    assert not has_password("sftp://user@host/x")
    assert not has_password("s3://bucket/a:b@c")


def test_signed_addresses_are_written_without_their_signature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In run.json, in the frozen list's description, in events, logs, errors and rows."""
    url = f"https://host/w.pth?X-Amz-Signature={SECRET}&token={SECRET}"
    run = Run(str(tmp_path / "run"))
    config = {"model": {"weights": url}, "api_key": SECRET, "data": {"fit": {"root": url}}}
    run.freeze_keys("fit", Source(config, lambda: pa.table({"key": ["a"]})))
    run.write_description(Job("toy", config, {}, ()), {}, {})
    with Events(run.folder, "driver") as events:
        events.say("error", error=f"GET '{url}' answered 403", where={"nested": [url]})
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []
    kept = json.loads((tmp_path / "run/run.json").read_text())["config"]["model"]["weights"]
    assert kept == "https://host/w.pth?X-Amz-Signature=***&token=***"
    assert SECRET not in str(UsageError(f"{url} is lost", where=url, cure=f"look at {url}"))

    class Stage:
        wants = "records"

        def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, Any]:
            raise ConnectionError(f"403, message='Forbidden', url='{url}'")

    _tell_failed("sweep", "fit/00000", [{"key": url, "status": "failed", "error": "ValueError: no"}])
    assert '"key": "https://host/w.pth?X-Amz-Signature=***&token=***"' in capsys.readouterr().err
    found = prepare_row(Stage(), {"key": "a"}, images.Limits())
    assert isinstance(found, str)
    assert "Forbidden" in found
    assert SECRET not in found


def test_temporary_files_are_their_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's uploaded config, weights as they come, what is spooled for an object store."""
    from jobs import submit

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []

    def look() -> None:
        seen.extend(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in tmp_path.iterdir())

    before = os.umask(0)
    try:
        with submit._files(JobConfig(), ()):
            look()
        with Folder("memory://private").stream("x") as file:
            file.write(b"x")
            look()
    finally:
        os.umask(before)
    assert len(seen) >= 1
    assert set(seen) == {0}
