"""Listing and reading a source's files, on any fsspec URL, with errors that name the file and the cure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NoReturn

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.redaction import has_password

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_TEXT_BYTES = 4 * 2**30  # a list of ten million images is 1 GB
MAX_XML_BYTES = 8 * 2**20
_REMOTE_CHUNK = 500
_BLOCK = 2**20
# Object stores raise their client libraries' own errors.
_BACK_ENDS = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "s3fs")


def is_url(path: str) -> bool:
    return "://" in path


def absolute(path: str) -> str:
    """The path as every worker understands it: an absolute local path or a URL, without a trailing slash."""
    if path.startswith(("file://", "local://")):
        path = path.split("://", 1)[1]
    if is_url(path):
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path))


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path inside it. Credentials come from the environment only."""
    if has_password(url):
        raise UsageError("has a password in it", where=url, cure="credentials come from the environment only")
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = {"s3": "s3", "gs": "gs", "gcs": "gs"}.get(url.split("://")[0])
        cure = f"pip install 'raylens[{extra}]'" if extra else "install the package the message names"
        raise UsageError(str(error), where=url, cure=cure) from error
    except ValueError as error:
        raise UsageError(str(error), where=url, cure="use a local path, s3://, gs:// or another fsspec URL") from error
    return fs, path


def relative_to(root: str, name: str, where: str) -> str:
    """The name normalised as a relative posix path.

    Raises UsageError where the name is absolute, a URL or climbs out of ``root``: names inside annotation files must
    not choose what is read from the machine.
    """
    bad = name.startswith("/") or is_url(name) or "\x00" in name or "\\" in name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if bad or ".." in parts or not parts:
        raise UsageError(
            f"the file name {name!r} does not stay inside {root}",
            where=where,
            cure="write names relative to the folder",
        )
    return "/".join(parts)


def exists(url: str) -> bool:
    if not is_url(url):
        return os.path.exists(url)
    fs, path = filesystem(url)
    return bool(_asked(fs.exists, url, path))


def require_folder(url: str, what: str) -> None:
    """UsageError unless the folder is there (a prefix with objects, on an object store)."""
    if is_url(url):
        fs, path = filesystem(url)
        found = _asked(fs.isdir, url, path)
    else:
        found = os.path.isdir(url)
    if not found:
        raise UsageError(f"{what} is not a folder or cannot be seen", where=url, cure="correct the path in the config")


@contextlib.contextmanager
def told(url: str) -> Iterator[None]:
    """A store that refuses or does not answer is the user's error, told in one line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError("no such file", where=url, cure="correct the path in the config") from None
    except UsageError:
        raise
    except Exception as error:
        back_end = type(error).__module__.split(".")[0] in _BACK_ENDS
        if back_end or isinstance(error, (OSError, RuntimeError, ValueError)):
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            cure = "check the path, its rights and, for a URL, the address and credentials"
            raise UsageError(f"cannot be read: {text}", where=url, cure=cure) from error
        raise


def _asked(call: Any, url: str, *arguments: Any) -> Any:
    with told(url):
        return call(*arguments)


def blocks(file: Any, limit: int) -> Iterator[bytes]:
    """What a file holds, piece by piece; where that is more than ``limit`` bytes, one byte of the rest and no more."""
    left = limit + 1
    while left and (block := file.read(min(left, _BLOCK))):
        left -= len(block)
        yield block


def read(url: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The whole file. Raises UsageError where it is missing, unreadable or larger than ``limit`` bytes."""
    with told(url):
        if is_url(url):
            fs, path = filesystem(url)
            size = fs.size(path)
            web = url.startswith(("http://", "https://"))
            if size is None or web:  # a server need not keep to what it announces
                with fs.open(path, "rb", **({"block_size": 0} if web else {})) as file:
                    data = b"".join(blocks(file, limit))
                if len(data) <= limit:
                    return data
                size = len(data)
            elif size <= limit:
                return bytes(fs.cat_file(path))
        else:
            size = os.path.getsize(url)
            if size <= limit:
                with open(url, "rb") as file:
                    return file.read()
    raise UsageError(f"{size} bytes are more than the {limit} this kind of file may have", where=url, cure="split it")


def read_text(url: str) -> str:
    try:
        return read(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8 text: {error}", where=url, cure="save it as UTF-8") from None


def read_lines(url: str) -> list[str]:
    """Non-empty lines, stripped."""
    return [stripped for line in read_text(url).splitlines() if (stripped := line.strip())]


def read_many(root: str, names: list[str], limit: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file below ``root``, in order; object stores are asked for many at once."""
    if not is_url(root):
        for name in names:
            yield name, read(f"{root}/{name}", limit)
        return
    fs, base = filesystem(root)
    for start in range(0, len(names), _REMOTE_CHUNK):
        chunk = names[start : start + _REMOTE_CHUNK]
        paths = [f"{base}/{name}" for name in chunk]
        answers = _asked(fs.cat, root, paths)
        for name, path in zip(chunk, paths, strict=True):
            # A file system may hand the path back with a leading slash that was not asked for, or without.
            content = answers.get(path, answers.get(path.lstrip("/"), answers.get("/" + path.lstrip("/"))))
            if content is None:
                raise UsageError("no such file", where=f"{root}/{name}", cure="correct the path in the config")
            if len(content) > limit:
                raise UsageError(f"larger than {limit} bytes", where=f"{root}/{name}", cure="look at the file")
            yield name, content


def list_files(root: str, suffixes: tuple[str, ...], what: str) -> pa.Array:
    """Relative posix paths of the files below ``root`` with one of the suffixes (any case), hidden ones left out.

    Sorted, so that what is told about the first bad one is the same everywhere. 1.3 million names stay Arrow strings:
    one Python list lives per folder only.
    """
    require_folder(root, what)
    found = _list_remote(root) if is_url(root) else pa.chunked_array(_walk(root, suffixes), pa.string())
    if is_url(root):
        pattern = "(?i)(" + "|".join(suffix.replace(".", r"\.") for suffix in suffixes) + ")$"
        found = found.filter(pc.match_substring_regex(found, pattern))
        found = found.filter(pc.invert(pc.match_substring_regex(found, r"(^|/)\.")))
    flat = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    return flat.take(pc.sort_indices(flat))


def _list_remote(root: str) -> pa.Array:
    fs, base = filesystem(root)
    paths = pa.array(_asked(fs.find, root, base), pa.string())
    skip = len(fs._strip_protocol(base)) + 1
    return pc.utf8_slice_codeunits(paths, skip)


def _walk(root: str, suffixes: tuple[str, ...]) -> Iterator[pa.Array]:
    # Each folder with the real paths of the links that led to it: class folders are often links, and a link back to
    # where the walk came from would never end.
    folders: list[tuple[str, tuple[str, ...]]] = [("", ())]
    longest = max(map(len, suffixes))
    while folders:
        folder, trail = folders.pop()
        here = os.path.join(root, folder)
        names: list[str] = []
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if entry.is_dir():
                        inside = f"{folder}/{name}" if folder else name
                        if not entry.is_symlink():
                            folders.append((inside, trail))
                            continue
                        real = os.path.realpath(entry.path)
                        above = f"{os.path.realpath(here)}/".startswith(f"{real}/")
                        if not above and real not in trail:
                            folders.append((inside, (*trail, real)))
                    elif name[-longest:].lower().endswith(suffixes):
                        names.append(name)
        except OSError as error:
            _unlistable(here, error)
        if names:
            try:
                chunk = pa.array(names, pa.string())
            except UnicodeEncodeError:
                bad = next(name for name in names if any("\ud800" <= c <= "\udfff" for c in name))
                raise UsageError(f"the name {bad!r} is not UTF-8", where=here, cure="rename the file") from None
            yield pc.binary_join_element_wise(folder, chunk, "/") if folder else chunk


def _unlistable(folder: str, error: OSError) -> NoReturn:
    raise UsageError(f"cannot be listed: {error.strerror or error}", where=folder, cure="check its rights") from error


def locate(root: str, keys: pa.Array) -> pa.Array:
    """The uri of each key below ``root``."""
    return pc.binary_join_element_wise(root, keys, "/")


def require_images(uris: pa.Array, where: str, cure: str) -> None:
    """UsageError where none of a few uris spread over the table exists: a wrong folder is told before a day of work.

    Single missing files stay rows: they fail later, each with its reason. http(s) is not asked.
    """
    if len(uris) == 0:
        raise UsageError("no images", where=where, cure=cure)
    asked = [uris[int(i)].as_py() for i in np.unique(np.linspace(0, len(uris) - 1, 8).astype(int))]
    if not any(uri.startswith(("http://", "https://")) or exists(uri) for uri in asked):
        raise UsageError(f"none of the images looked for exists, e.g. {asked[0]}", where=where, cure=cure)
