"""Annotations, lists, images and weights that are not what they should be: as in test_fuzz.py."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging import judged, put, tries
from spoilt import VALUES, spoilt_bytes, spoilt_values

pytestmark = pytest.mark.usefixtures("counts")


# Datasets


BOX = {"bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "segmentation": [[1, 2, 4, 2, 4, 6]]}
COCO = {
    "info": {"year": 2026},
    "categories": [{"id": 1, "name": "dog", "supercategory": "animal"}, {"id": 7, "name": "cat"}],
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in range(4)],
    "annotations": [{"id": i + 1, "image_id": i, "category_id": 1 + 6 * (i % 2), **BOX} for i in range(4)],
}
XML = b"""<annotation><size><width>9</width><height>9</height><depth>3</depth></size><object><name>dog</name>
<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox></object></annotation>"""
LIST = b"uri,label,x0,y0,x1,y1,width,height\na.jpg,1,1,2,4,6,9,9\nb/c.jpg,0,,,,,,\na.jpg,1,0,0,3,3,9,9\n"


@tries(120)
@given(data=st.data())
def test_coco_annotations(here: Path, data: st.DataObject) -> None:
    from pipeline.dataset import key_table
    from pipeline.sources.instances import InstancesSource, instances_table

    written = data.draw(st.one_of(spoilt_bytes(json.dumps(COCO).encode()), spoilt_values(COCO)))
    if not isinstance(written, bytes):
        written = json.dumps(written).encode(errors="surrogatepass")
    path = put(here / "coco/instances.json", written)
    put(here / "coco/0.jpg", b"")
    with judged("COCO annotations"):
        key_table({"kind": "coco", "annotations": path, "images": str(here / "coco")})
    with judged("COCO annotations, for filtering"):
        instances_table(InstancesSource(annotations=path))


@tries(120)
@given(written=spoilt_bytes(XML))
def test_voc_annotations(here: Path, written: bytes) -> None:
    from pipeline.dataset import key_table

    put(here / "voc/JPEGImages/a.jpg", b"")
    put(here / "voc/ImageSets/Main/trainval.txt", b"a\n")
    put(here / "voc/Annotations/a.xml", written)
    with judged("VOC annotations"):
        key_table({"kind": "voc", "root": str(here / "voc"), "classes": ["dog", "cat"]})


@tries(120)
@given(data=st.data())
def test_lists(here: Path, data: st.DataObject) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    from pipeline.dataset import key_table

    put(here / "list/a.jpg", b"")
    whole = LIST
    if parquet := data.draw(st.booleans()):
        sink = io.BytesIO()
        pq.write_table(pa.csv.read_csv(io.BytesIO(LIST)), sink)
        whole = sink.getvalue()
    path = put(here / f"list/list.{'parquet' if parquet else 'csv'}", data.draw(spoilt_bytes(whole)))
    with judged("CSV and Parquet lists"):
        key_table({"kind": "list", "path": path, "classes": data.draw(st.sampled_from([None, ["cat", "dog"]]))})


@tries(80)
@given(data=st.data())
def test_text_lists(here: Path, data: st.DataObject) -> None:
    """Image sets, classes, keys, ground truth: one entry a line."""
    from pipeline.dataset import key_table

    truth = data.draw(spoilt_bytes(b"1\n2\n1\n"))
    names = data.draw(spoilt_bytes(b"dog\ncat\n"))
    keys = data.draw(spoilt_bytes(b"ILSVRC2012_val_00000001\n*2.JPEG\n"))
    for number in range(1, 4):
        put(here / f"val/ILSVRC2012_val_0000000{number}.JPEG", b"")
    source = {"kind": "ilsvrc", "root": str(here / "val"), "classes": put(here / "classes.txt", names)}
    with judged("text lists"):
        key_table({**source, "ground_truth": put(here / "truth.txt", truth)})
    put(here / "voc/JPEGImages/a.jpg", b"")
    put(here / "voc/Annotations/a.xml", XML)
    put(here / "voc/ImageSets/Main/trainval.txt", data.draw(spoilt_bytes(b"a 1\n")))
    with judged("text lists"):
        key_table({"kind": "voc", "root": str(here / "voc"), "classes": put(here / "c.txt", names)})
    with judged("text lists"):
        key_table({"kind": "folder", "root": str(here / "val"), "keys": put(here / "keys.txt", keys)})


@tries(60)
@given(given_source=st.dictionaries(st.sampled_from(["kind", "root", "path", "classes", "keys", "share", "x"]), VALUES))
def test_descriptions_of_sources(here: Path, given_source: dict[str, Any]) -> None:
    from pipeline.dataset import parse_source

    with judged("descriptions of sources"):
        parse_source(given_source)


# Images and weights


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    image, found = Image.fromarray(pixels), []
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("JPEG", "RGB", {"quality": 70}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("WEBP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {"compression": "jpeg"}),
        ("PPM", "RGB", {}),
    ]
    for kind, mode, options in ways:
        out = io.BytesIO()
        (image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)).save(out, kind, **options)
        found.append(out.getvalue())
    return found


@tries(400)
@given(data=st.data())
def test_images(images: list[bytes], data: st.DataObject) -> None:
    """What is in an image is a value, ours to tell: nothing is raised at all."""
    from pipeline.images import Decoded, DecodeError, Limits, decode

    whole = data.draw(st.sampled_from(images))
    exif = data.draw(st.sampled_from(["ignore", "apply"]))
    draft = data.draw(st.sampled_from([None, (4, 4), (100, 100)]))
    with judged("images"):
        found = decode(data.draw(spoilt_bytes(whole)), Limits(max_megapixels=0.05, exif=exif), draft=draft)
        if isinstance(found, Decoded):
            assert found.pixels.dtype.name == "uint8"
            assert found.pixels.ndim == 3
            assert found.pixels.shape[2] == 3
            assert found.pixels.size <= 3 * 50_000
        else:
            assert isinstance(found, DecodeError)
            assert found.reason


@tries(80)
@given(data=st.data())
def test_weights(here: Path, data: st.DataObject) -> None:
    import safetensors.torch
    import torch

    from pipeline.weights import read_state

    state = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}
    kind = data.draw(st.sampled_from(["safetensors", "pth"]))
    if kind == "pth":
        out = io.BytesIO()
        torch.save({"state_dict": state}, out)
        whole = out.getvalue()
    else:
        whole = safetensors.torch.save(state)
    with judged("weights"):
        read_state(put(here / f"weights.{kind}", data.draw(spoilt_bytes(whole))))
