"""A JSON object far larger than memory, read entry by entry.

The standard library's scanner runs over a sliding window of the file: as fast as an event parser written in C, without
a dependency, and it says where each entry lies, so that entries can later be copied byte for byte. The window is text
in Latin-1, in which a character is a byte; entries that are not plain ASCII are decoded again as UTF-8.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple, NoReturn

import fsspec

from pipeline.errors import UsageError
from pipeline.sources import files

CHUNK = 4 * 2**20
MAX_ENTRY = 256 * 2**20  # bytes of one entry: a larger one is a broken quote or another kind of file
_SPACE = " \t\n\r"
_NEAR = 16  # bytes before the window's end in which an error may only mean that the entry goes on
_CURE = "fetch or write the file again"


class Entry(NamedTuple):
    """One entry of a listed member, or another member as a whole (``at`` is then -1)."""

    part: str
    at: int
    value: Any
    start: int  # bytes, in the decompressed file
    length: int


class JsonStream:
    """Iterate once: entries of the members named in ``lists``, which must be arrays, and other members whole.

    Afterwards ``counts`` has the entries of each list that was there and ``sha256`` the digest of the (decompressed)
    file. Raises UsageError with the place for whatever is no JSON object, and for members that stand twice.
    """

    def __init__(self, url: str, lists: Iterable[str], *, chunk: int = CHUNK) -> None:
        self.url, self.lists, self._chunk = url, tuple(lists), chunk
        self.counts: dict[str, int] = {}
        self.sha256 = ""

    def __iter__(self) -> Iterator[Entry]:
        with opened(self.url) as stream:
            window = _Window(stream, self.url, self._chunk)
            if window.next() != "{":
                window.fail(f"is not a JSON object with {_listed(self.lists)}")
            window.take()
            yield from self._members(window)
            if window.next():
                window.fail("is not valid JSON: something stands behind the object's end")
            self.sha256 = window.digest.hexdigest()

    def _members(self, window: _Window) -> Iterator[Entry]:
        seen: set[str] = set()
        if window.next() == "}":
            window.take()
            return
        while True:
            if window.next() != '"':
                window.fail("is not valid JSON (truncated?): a member's name is expected")
            name = window.value("a member's name")[0]
            if name in seen:
                window.fail(f"'{name}' stands twice")
            seen.add(name)
            if window.next() != ":":
                window.fail(f"is not valid JSON (truncated?): ':' is expected behind '{name}'")
            window.take()
            if name in self.lists:
                yield from self._list(window, name)
            else:
                window.next()
                yield Entry(name, -1, *window.value(name))
            if window.ends("}", name):
                return

    def _list(self, window: _Window, name: str) -> Iterator[Entry]:
        if window.next() != "[":
            window.fail(
                f"'{name}' is no list" if window.next() else f"is not valid JSON (truncated?): '{name}' is empty"
            )
        window.take()
        at = 0
        if window.next() == "]":
            window.take()
        else:
            while True:
                window.next()
                yield Entry(name, at, *window.value(f"{name}[{at}]"))
                at += 1
                if window.ends("]", f"{name}[{at - 1}]"):
                    break
        self.counts[name] = at


class _Window:
    """The part of the file in sight, and the place in it."""

    def __init__(self, stream: IO[bytes], url: str, chunk: int) -> None:
        self._stream, self._url, self._chunk = stream, url, chunk
        self._text, self._pos, self._base, self._over = "", 0, 0, False
        self._decode = json.JSONDecoder().raw_decode
        self.digest = hashlib.sha256()
        while len(self._text) < 3 and self._more():
            pass
        if self._text.startswith("\xef\xbb\xbf"):  # a byte order mark
            self._pos = 3

    def fail(self, what: str) -> NoReturn:
        raise UsageError(what, where=f"{self._url}, byte {self._base + self._pos:,}", cure=_CURE)

    def next(self) -> str:
        """The next character that is no space, not yet taken; "" at the end."""
        while True:
            while self._pos < len(self._text):
                here = self._text[self._pos]
                if here not in _SPACE:
                    return here
                self._pos += 1
            if not self._more():
                return ""

    def take(self) -> None:
        self._pos += 1

    def ends(self, closing: str, behind: str) -> bool:
        """Take a comma (False) or the closing bracket (True)."""
        here = self.next()
        if here not in (",", closing) or not here:
            self.fail(f"is not valid JSON (truncated?): ',' or '{closing}' is expected behind {behind}")
        self.take()
        return here == closing

    def value(self, name: str) -> tuple[Any, int, int]:
        """The value that begins here, where it begins and its length in bytes."""
        while True:
            text, start = self._text, self._pos
            try:
                value, end = self._decode(text, start)
                # A number may go on behind the window ("1", "1e+", "1e+5"); a string, list or object has its end.
                if text[end - 1] in '"]}' or end + _NEAR <= len(text) or not self._more():
                    break
            except json.JSONDecodeError as error:
                unfinished = error.pos >= len(text) - _NEAR or error.msg.startswith("Unterminated string")
                if len(text) - start > MAX_ENTRY:
                    self.fail(f"{name} is longer than {MAX_ENTRY >> 20} MB")
                if not unfinished or not self._more():
                    self.fail(f"{name} is not valid JSON (truncated?): {error.msg}")
            except (RecursionError, ValueError) as error:  # nested beyond reason; an integer of thousands of digits
                self.fail(f"{name} is not valid JSON: {error}")
        raw = text[start:end]
        if not raw.isascii():
            try:
                value = json.loads(raw.encode("latin-1").decode("utf-8"))
            except UnicodeDecodeError as error:
                self.fail(f"{name} is not UTF-8 text: {error}")
        self._pos = end
        return value, self._base + start, end - start

    def _more(self) -> bool:
        """Let go of what was read and read on; as much as is in sight already, so that large entries stay linear."""
        if self._over:
            return False
        left = self._text[self._pos :]
        data = read_some(self._stream, max(self._chunk, len(left)), self._url)
        if not data:
            self._over = True
            return False
        self.digest.update(data)
        self._base += self._pos
        self._text, self._pos = left + data.decode("latin-1"), 0
        return True


def read_some(stream: IO[bytes], size: int, url: str) -> bytes:
    """Up to ``size`` bytes. Raises UsageError where the store fails or the compressed file is cut off or broken."""
    try:
        with files.told(url):
            return stream.read(size)
    except (EOFError, zlib.error) as error:
        raise UsageError(f"its compression is broken or cut off: {error}", where=url, cure=_CURE) from None


@contextlib.contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed where its name ends in .gz; local or on any fsspec URL."""
    with contextlib.ExitStack() as stack:
        with files.told(url):
            if files.is_url(url):
                fs, path = files.filesystem(url)
                raw = stack.enter_context(fs.open(path, "rb", block_size=8 * 2**20))
            else:
                raw = stack.enter_context(fsspec.filesystem("file").open(url, "rb"))
        if not url.endswith(".gz"):
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield unpacked  # type: ignore[misc]


def copied(url: str, spans: Iterable[tuple[int, int]], digest: Any = None, *, chunk: int = CHUNK) -> Iterator[bytes]:
    """The bytes of each (start, length) in rising order of starts.

    With ``digest`` (a hashlib object) the whole file is read and hashed, for whoever must know that it has not changed
    since the spans were noted; without it an uncompressed file is read at the spans only.
    """
    with opened(url) as stream:
        seeks = digest is None and not url.endswith(".gz")
        data, base = b"", 0
        for start, length in spans:
            if seeks and start > base + len(data) + chunk:
                stream.seek(start)
                data, base = b"", start
            parts: list[bytes] = []
            while base + len(data) < start + length:
                if base + len(data) > start:
                    parts.append(data[max(0, start - base) :])
                base += len(data)
                data = read_some(stream, chunk, url)
                if not data:
                    raise UsageError("is shorter than it was when it was listed", where=url, cure=_CURE)
                if digest is not None:
                    digest.update(data)
            parts.append(data[max(0, start - base) : start + length - base])
            yield b"".join(parts)
        while digest is not None and (data := read_some(stream, chunk, url)):
            digest.update(data)


def _listed(names: tuple[str, ...]) -> str:
    return f"lists {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"a list {''.join(names)}"
