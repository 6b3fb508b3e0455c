"""Weights by torchvision's name and by URL, over real HTTP servers on loopback."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import UsageError
from pipeline.models import ModelSpec, load, weights_digest
from pipeline.vision import torchvision

NETWORK = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's module in it."""
    (tmp_path / "raylens_own_weights.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    yield tmp_path
    sys.modules.pop("raylens_own_weights", None)


def spec(**fields: Any) -> ModelSpec:
    small = {"name": "raylens_own_weights:Tiny", "preprocess": {"size": 16}}
    return ModelSpec(**(small | fields))


def refused(given: ModelSpec, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(given)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.cure
    assert caught.value.where


def same_numbers(module: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    mine = module.state_dict()
    return all(torch.equal(mine[name], tensor.to(mine[name].dtype)) for name, tensor in state.items())


def state_of(given: ModelSpec) -> dict[str, torch.Tensor]:
    return load(given).module.state_dict()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, list[str]]]:
    """(address, the folder it serves, paths asked for); torch.hub's cache is in the test's own folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_address[1]}", folder, asked
    served.shutdown()
    served.server_close()
    thread.join()


def publish(folder: Path, state: dict[str, torch.Tensor], name: str) -> str:
    """Save the state as torchvision publishes it: the name carries the first 8 digits of the file's sha256."""
    torch.save(state, folder / "w")
    digest = hashlib.sha256((folder / "w").read_bytes()).hexdigest()
    (folder / "w").rename(folder / f"{name}-{digest[:8]}.pth")
    return f"{name}-{digest[:8]}.pth"


def test_named_weights_are_downloaded_once_checked_and_bring_their_classes(
    server: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, folder, asked = server
    torch.manual_seed(5)
    state = torchvision.models.squeezenet1_1().state_dict()
    name = publish(folder, state, "squeezenet1_1")
    entry = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    monkeypatch.setattr(entry.value, "url", f"{address}/{name}")
    given = ModelSpec(name="squeezenet1_1", weights="DEFAULT", preprocess={"size": 64})
    before = weights_digest(given)
    assert asked == []
    network = load(given)
    assert same_numbers(network.module, state)
    assert network.classes is not None
    assert network.classes[0] == "tench"
    assert load(given).num_classes == 1000
    assert len(asked) == 1
    assert weights_digest(given) == before, "a digest that moves with the cache would refuse every resumed run"
    cached = tmp_path / "hub/checkpoints" / name
    cached.write_bytes(cached.read_bytes()[:-1] + b"?")
    refused(given, name, "sha256")


def test_a_file_with_torchvisions_name_is_torchvisions_file(
    server: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, asked = server
    torch.manual_seed(5)
    published = torchvision.models.inception_v3(init_weights=False, aux_logits=True, transform_input=True).eval()
    name = publish(folder, published.state_dict(), "inception_v3_google")
    entry = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1
    monkeypatch.setattr(entry.value, "url", f"https://nowhere.invalid/{name}")
    network = load(ModelSpec(name="inception_v3", weights=str(folder / name)))
    assert network.classes is not None
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # transform_input, which a state dict does not carry, changes the result; the published weights need it.
        torch.testing.assert_close(network.module(x), published(x))
        published.transform_input = False
        assert not torch.allclose(network.module(x), published(x))
    assert asked == []


def test_urls_are_fetched_once_within_the_limit(own: Path, server: tuple[str, Path, list[str]]) -> None:
    address, folder, asked = server
    state = state_of(spec(seed=3))
    save_file(state, folder / "w.safetensors")
    url = f"{address}/w.safetensors"
    size = (folder / "w.safetensors").stat().st_size
    refused(spec(weights=url, max_download_gb=(size - 1) / 2**30), url, "max_download_gb")
    refused(spec(weights=f"{address}/none.pth"), "none.pth", "404")
    asked.clear()
    assert same_numbers(load(spec(weights=url)).module, state)
    assert same_numbers(load(spec(weights=url)).module, state)
    assert asked == ["/w.safetensors"]
    assert weights_digest(spec(weights=url)) == weights_digest(spec(weights=str(folder / "w.safetensors")))
    name = publish(folder, state, "mine")
    (folder / name).write_bytes(b"something else")
    refused(spec(weights=f"{address}/{name}"), name, "sha256")
    assert not [path for path in (own / "hub").rglob("*") if path.name.startswith(".download")]


def test_a_server_that_sends_forever_meets_the_limit(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                return

        def log_message(self, format: str, *args: Any) -> None:
            return

    monkeypatch.setattr(torch.hub, "_hub_dir", str(own / "hub"))
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{served.server_address[1]}/w.pth"
    refused(spec(weights=url, max_download_gb=0.002), "max_download_gb")
    served.shutdown()
    served.server_close()


def test_object_stores_and_file_urls_hold_weights_too(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(own / "hub"))
    state = state_of(spec(seed=3))
    save_file(state, own / "w.safetensors")
    fsspec.filesystem("memory").pipe("/raylens-weights/w.safetensors", (own / "w.safetensors").read_bytes())
    for url in ("memory://raylens-weights/w.safetensors", f"file://{own}/w.safetensors"):
        assert same_numbers(load(spec(weights=url)).module, state)
    refused(spec(weights="memory://raylens-weights/none.safetensors"), "none.safetensors")
