"""Odd images through the whole engine: each is a row, ok or failed with its reason; none stops the job."""

from __future__ import annotations

import dataclasses
import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import plan as plans
from pipeline import steps
from pipeline.dataset import key_table
from pipeline.engine import execute
from pipeline.options import Options, Resources
from pipeline.run import Run
from pipeline.shards import Shards
from stages.schema import column


@dataclasses.dataclass(frozen=True)
class MeansConfig:
    side: int = 8


class Means:
    """The mean colour of each image: enough to see whether it was read rightly."""

    version = 1
    wants = "pixels"

    def __init__(self, config: MeansConfig) -> None:
        self.config = config

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([column("mean", pa.list_(pa.float32()), "mean of each channel", shape="[3]")])

    def prepare(self, image, row):
        return {"mean": image.reshape(-1, 3).mean(axis=0).astype(np.float32)}

    def setup(self, device, inputs):
        pass

    def micro_batch(self, device):
        return 4

    def __call__(self, batch):
        return [{"mean": mean} for mean, valid in zip(batch["mean"], batch["valid"], strict=True) if valid]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing: opening it must not allocate it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def odd_images(folder: Path) -> dict[str, list[float] | str]:
    """Writes the images; gives the mean colour each must have, or a word of the reason it must fail with."""
    folder.mkdir()
    orange = Image.new("RGB", (40, 30), (255, 128, 0))
    good = encoded(orange, "JPEG", quality=95)
    deep = np.full((30, 40), 257 * 100, dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    files: dict[str, tuple[bytes, list[float] | str]] = {
        "cmyk.jpg": (encoded(orange.convert("CMYK"), "JPEG", quality=95), [255, 128, 0]),
        "deep.png": (encoded(Image.fromarray(deep), "PNG"), [100, 100, 100]),
        "empty.jpg": (b"", "empty"),
        "good.jpg": (good, [255, 128, 0]),
        "grey.png": (encoded(Image.new("L", (40, 30), 7), "PNG"), [7, 7, 7]),
        "huge.png": (png_header(20_000, 10_000), "megapixels"),
        "palette.png": (encoded(orange.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), [255, 128, 0]),
        "rotated.jpg": (encoded(orange, "JPEG", quality=95, exif=exif), [255, 128, 0]),
        "text.jpg": (b"this is no image at all", "image"),
        "truncated.jpg": (good[: len(good) // 2], "truncated"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: expected for name, (_, expected) in files.items()}


@pytest.mark.parametrize("mode", ["inline", "spread"])
def test_every_odd_image_is_a_row(tmp_path, mode):
    """In a process of its own: the stage of this file must be importable by Ray's workers."""
    import subprocess

    expected = odd_images(tmp_path / "images")
    resources = {"cpus": 2, "mode": mode} | ({"gpus": 1} if mode == "spread" else {})
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import test_images as t;"
        "print(json.dumps(t.drive(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))))"
    )
    import json
    import os

    here = str(Path(__file__).parent)
    found = subprocess.run(
        [sys.executable, "-c", code, here, str(tmp_path / "images"), str(tmp_path / "run"), json.dumps(resources)],
        env={**os.environ, "PYTHONPATH": here},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert found.returncode == 0, found.stderr
    rows = {row["key"]: row for row in json.loads(found.stdout.splitlines()[-1])["rows"]}
    assert json.loads(found.stdout.splitlines()[-1])["exit_code"] == 3
    assert sorted(rows) == sorted(expected)
    for name, what in expected.items():
        if isinstance(what, str):
            assert rows[name]["status"] == "failed", name
            assert what in rows[name]["error"].lower(), (name, rows[name]["error"])
            assert rows[name]["mean"] is None
        else:
            assert rows[name]["status"] == "ok", (name, rows[name]["error"])
            assert rows[name]["mean"] == pytest.approx(what, abs=3)


def drive(images: str, run: str, resources: dict) -> dict:
    """Runs the job in this process; what the test's subprocess calls."""
    source = {"kind": "folder", "root": images}
    job = steps.Job(
        "odd",
        {},
        {"all": steps.Source(source, lambda: key_table(source))},
        (steps.Measure("means", Means(MeansConfig()), ("all",)),),
    )
    outcome = execute(job, run, Options(resources=Resources(**resources), say=lambda _: None))
    folder = Run(run).step_folder("means", split="all")
    plan = plans.load(folder)
    assert plan is not None
    rows = pa.concat_tables(list(Shards(folder, plan.shards).tables())).to_pylist()
    return {"rows": rows, "exit_code": outcome.exit_code}
