"""Sources and images on a real S3 protocol: what its server answers, not what a local disk would."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset import key_table
from pipeline.errors import UsageError
from pipeline.images import Decoded, DecodeError, Limits, load

s3fs = pytest.importorskip("s3fs", reason="s3fs is an extra")
moto = pytest.importorskip("moto.server", reason="moto's server stands in for S3")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """s3://BUCKET on a server on loopback, credentials from the environment as a user gives them."""
    with pytest.MonkeyPatch.context() as environment:
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # File systems are kept by their arguments: one of another test would still talk to its own server.
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem()
        fs.mkdir("raylens-sources")
        out = io.BytesIO()
        Image.new("RGB", (6, 4), (9, 8, 7)).save(out, "PNG")
        for name in ("cat/1.png", "cat/2 #?%41.png", "dog/1.png"):
            fs.pipe(f"raylens-sources/images/{name}", out.getvalue())
        fs.pipe("raylens-sources/empty.png", b"")
        fs.pipe("raylens-sources/list.csv", b"uri,label\nimages/cat/1.png,3\n")
        yield "s3://raylens-sources"
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_folder_and_its_images(bucket: str) -> None:
    table = key_table({"kind": "folder", "root": f"{bucket}/images"})
    assert table["key"].to_pylist() == ["cat/1.png", "cat/2 #?%41.png", "dog/1.png"]
    assert table["label"].to_pylist() == [0, 0, 1]
    for uri in table["uri"].to_pylist():
        found = load(uri)
        assert isinstance(found, Decoded), found
        assert (found.pixels == np.array([9, 8, 7])).all()


def test_a_list_beside_its_images(bucket: str) -> None:
    (row,) = key_table({"kind": "list", "path": f"{bucket}/list.csv"}).to_pylist()
    assert (row["uri"], row["label"]) == (f"{bucket}/images/cat/1.png", 3)


@pytest.mark.parametrize(
    ("name", "limit", "kind"),
    [("empty.png", 1, "empty"), ("none.png", 1, "missing"), ("images/cat/1.png", 1e-5, "too_large")],
)
def test_bad_objects_have_a_reason(bucket: str, name: str, limit: float, kind: str) -> None:
    found = load(f"{bucket}/{name}", Limits(max_mbytes=limit))
    assert isinstance(found, DecodeError)
    assert found.kind == kind


@pytest.mark.parametrize("path", ["{}/none.csv", "s3://raylens-no-bucket/l.csv"])
def test_what_is_not_there_is_named(bucket: str, path: str) -> None:
    path = path.format(bucket)
    with pytest.raises(UsageError, match=r"no such file") as caught:
        key_table({"kind": "list", "path": path})
    assert caught.value.where == path
    with pytest.raises(UsageError) as caught:
        key_table({"kind": "folder", "root": path})
    assert caught.value.where == path
