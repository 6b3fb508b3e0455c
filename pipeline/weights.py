"""Weights from files: fetched with limits, read without running anything in them, fitted to a network strictly."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.redaction import has_password
from pipeline.sources.files import absolute, blocks, filesystem, is_url

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")  # torch.hub's convention: the name ends in the file's sha256
_TIMEOUT_S = 60
# DenseNet checkpoints older than torch 0.4 write "norm.1" where the module has "norm1".
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)$")


def is_file(weights: str) -> bool:
    """Whether ``weights`` means a path or URL, not the name of torchvision weights."""
    return is_url(weights) or "/" in weights or weights.lower().endswith(SUFFIXES)


def sha256_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(weights: str, limit_bytes: int, folder: str | None = None) -> str:
    """The local file of a path or URL. A URL is downloaded once, into ``folder`` or torch.hub's folder.

    Raises UsageError where it is missing, larger than ``limit_bytes``, or not what the hash in its name says.
    """
    path = absolute(weights)
    if has_password(path):
        raise UsageError("has a password in it", where=path, cure="credentials come from the environment only")
    if not is_url(path):
        if not os.path.isfile(path):
            raise UsageError("no such weights file", where=path, cure="correct weights in the config")
        return path
    name = path.split("?")[0].rpartition("/")[2] or "weights"
    if folder is None:
        # Two URLs may end in one name.
        folder = os.path.join(torch.hub.get_dir(), "raylens")
        target = Path(folder, f"{hashlib.sha256(path.encode()).hexdigest()[:16]}-{name}")
    else:
        target = Path(folder, name)
    expected = _HASH.search(name)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Several actors of a node may fetch at once: each into its own file, and the rename decides.
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".download-")
        try:
            with os.fdopen(handle, "wb") as out:
                _download(path, out, limit_bytes)
            _check_hash(temporary, expected, path)
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    else:
        _check_hash(str(target), expected, str(target))
    return str(target)


def _check_hash(path: str, expected: re.Match[str] | None, where: str) -> None:
    if expected is not None and not (found := sha256_file(path)).startswith(expected[1]):
        raise UsageError(
            f"its sha256 begins with {found[: len(expected[1])]}, its name says {expected[1]}",
            where=where,
            cure="the download is damaged or another file: delete it and run again",
        )


def _download(url: str, out: IO[bytes], limit: int) -> None:
    too_large = UsageError(
        f"more than {limit / 2**30:.3g} GiB", where=url, cure="raise max_download_gb if this is meant"
    )
    try:
        if url.startswith(("http://", "https://")):
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                length = answer.headers.get("Content-Length")
                if length is not None and length.isdigit() and int(length) > limit:
                    raise too_large
                out.writelines(blocks(answer, limit))
                if out.tell() > limit:
                    raise too_large
                if length is not None and length.isdigit() and out.tell() != int(length):
                    raise OSError(f"{out.tell()} of {length} bytes came")
            return
        fs, path = filesystem(url)
        if (fs.size(path) or 0) > limit:
            raise too_large
        with fs.open(path, "rb") as file:
            out.writelines(blocks(file, limit))
        if out.tell() > limit:  # a store need not know the size, nor keep to it
            raise too_large
    except (OSError, urllib.error.URLError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"cannot be downloaded: {error}", where=url, cure="check the address and the network"
        ) from error


def read_state(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or a torch checkpoint, by name, on the CPU.

    Nothing in the file is executed (safetensors, or torch.load with ``weights_only``). Nesting (``state_dict`` and
    the like) is opened. Raises UsageError where the file is damaged, holds other objects, or no tensors.
    """
    try:
        if path.lower().endswith(".safetensors"):
            import safetensors.torch

            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        message = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        unsafe = "Unsupported" in str(error) or "weights_only" in str(error) or "Weights only" in str(error)
        raise UsageError(
            f"cannot be read as weights: {message}",
            where=path,
            cure="it holds more than tensors: torch.save(model.state_dict(), PATH) writes what is wanted"
            if unsafe
            else "is it a whole .safetensors or .pth file? fetch or write it again",
        ) from error
    for _ in range(3):
        nest = next((n for n in _NESTS if isinstance(content, Mapping) and isinstance(content.get(n), Mapping)), None)
        if nest is None:
            break
        content = content[nest]
    state = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        found = f"the entries {', '.join(map(str, content))[:200]}" if isinstance(content, Mapping) else type(content)
        raise UsageError(f"holds no named tensors but {found}", where=path, cure="save model.state_dict()")
    return state


def renamed(state: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    """The state under the network's names: wrappers' prefixes and DenseNet's old names undone."""
    for _ in range(len(_PREFIXES)):
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in wanted):
                state = {key[len(prefix) :]: tensor for key, tensor in state.items()}
    if any(_OLD_DENSENET.match(key) for key in state):
        state = {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in state.items()}
    return state


def fit(
    module: nn.Module, state: dict[str, torch.Tensor], where: str, near: Callable[[Mapping[str, torch.Size]], str]
) -> None:
    """Put the state into the module: every name and shape must agree, numbers become the module's type.

    ``near`` is asked for a cure from the shapes in the file when they do not. Batch norm's step counters may be
    missing (checkpoints older than them), and instance norms that keep no statistics may have some. Raises UsageError
    listing the first names that disagree.
    """
    own = module.state_dict()
    norms = dict(module.named_modules())
    state = {name: tensor for name, tensor in renamed(state, set(own)).items() if not _untracked(norms, name)}
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or extra or shapes:
        faults = [
            _few("missing", missing, str),
            _few("unexpected", extra, str),
            _few("of another shape", shapes, lambda n: f"{n} {list(state[n].shape)} for {list(own[n].shape)}"),
        ]
        found = {name: tensor.shape for name, tensor in state.items()}
        cure = near(found) or _guess(missing, extra, shapes, {name: t.shape for name, t in own.items()}, found)
        raise UsageError("does not fit the network: " + "; ".join(filter(None, faults)), where=where, cure=cure)
    bad = next((n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()), None)
    if bad is not None:
        raise UsageError(f"{bad} holds NaN or infinity", where=where, cure="these weights cannot be used: get others")
    module.load_state_dict(state, strict=False)


def _untracked(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Statistics that checkpoints older than torch 0.4 hold of instance norms, which never used them."""
    path, _, last = name.rpartition(".")
    norm = modules.get(path)
    untracked = isinstance(norm, nn.modules.instancenorm._InstanceNorm) and not norm.track_running_stats
    return untracked and last in ("running_mean", "running_var", "num_batches_tracked")


def _few(what: str, names: list[str], show: Callable[[str], str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)} {what}: {', '.join(show(name) for name in names[:4])}{more}"


def _guess(
    missing: list[str],
    extra: list[str],
    shapes: list[str],
    own: Mapping[str, torch.Size],
    found: Mapping[str, torch.Size],
) -> str:
    if shapes and not missing and not extra:
        heads = {found[n][0] for n in shapes if found[n][1:] == own[n][1:]}
        if len(heads) == 1 and len(shapes) <= 4:
            return (
                f"only the last layer differs: the file has {heads.pop()} classes; set num_classes (or your argument)"
            )
    if missing and extra:
        name = difflib.get_close_matches(missing[0], extra, 1, 0.3) or extra[:1]
        return f"is {name[0]!r} what the network calls {missing[0]!r}? rename it, or choose the name of its network"
    return "choose the network these weights were saved from"
