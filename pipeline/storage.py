"""A folder at any fsspec URL, with the two writes the commit protocol needs: whole files and exclusive ones.

Locally a file appears by rename or link of a finished, fsynced temporary file; on an object store by one PUT. So a
reader never meets half a file, and of two writers racing for one name exactly one wins (on stores without
conditional PUT, and on file systems without hard links, the last of two that write at the same moment wins, which
stays consistent because receipts name their files by content).
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import RaylensError
from pipeline.redaction import has_password

_FATAL = {
    errno.ENOSPC: ("no space is left on the device", "free some space (nothing committed is lost) and run again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space (nothing committed is lost) and run again"),
    errno.EACCES: ("permission denied", "choose a folder that this user may write, or change its mode"),
    errno.EPERM: ("operation not permitted", "choose a folder that this user may write, or change its mode"),
    errno.EROFS: ("the file system is read-only", "choose a folder on a writable file system"),
    errno.EEXIST: ("a part of this path is a file, not a folder", "choose another folder"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another folder"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter folder name"),
}
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


class StorageError(RaylensError):
    """The storage refused, for a reason that trying again will not cure."""


class UnreachableError(StorageError):
    """An object store that gave no answer, or one that nobody expected: it may pass."""


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        what, cure = _FATAL[errno.EACCES] if error.errno is None else _FATAL.get(error.errno, _FATAL[errno.EACCES])
        raise StorageError(what, where=path, cure=cure) from error
    except OSError as error:
        if error.errno in _FATAL:
            what, cure = _FATAL[error.errno]
            raise StorageError(what, where=path, cure=cure) from error
        if isinstance(error, (FileNotFoundError, FileExistsError, NotADirectoryError)) or "://" not in path:
            raise
        raise _unreachable(path, error) from error
    except RaylensError:
        raise
    except Exception as error:  # object stores raise their own types when they cannot be reached
        if "://" not in path:
            raise
        raise _unreachable(path, error) from error


def _unreachable(path: str, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"the storage did not answer ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
        where=path,
        cure="check the URL, the network and the credentials; nothing committed is lost, run again to go on",
    )


class Folder:
    """A folder at ``url`` (local path, s3://, gs://, memory://, ...); names inside use ``/``.

    Credentials come from the environment only (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).
    """

    def __init__(self, url: str) -> None:
        protocol = url.split("://", 1)[0] if "://" in url else "file"
        if has_password(url):
            raise StorageError("has a password in it", where=url, cure="credentials come from the environment only")
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            extra = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}.get(protocol)
            cure = f"pip install 'raylens[{extra}]'" if extra else "use a local path, s3:// or gs://"
            raise StorageError(str(error).splitlines()[0], where=url, cure=cure) from error
        self.local = isinstance(self.fs, LocalFileSystem)
        self.root = str(self.root).rstrip("/")
        self.url = self.root if self.local else f"{protocol}://{self.root.split('://')[-1].lstrip('/')}"

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Folder, (self.url,))

    def child(self, *names: str) -> Folder:
        """The folder below; nothing is created until something is written."""
        return Folder("/".join([self.url, *names]))

    def path(self, name: str) -> str:
        """The full path or URL of a name, for messages and for readers outside."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        """The file's bytes; FileNotFoundError when there is none."""
        with _told(self.path(name)):
            return bytes(self.fs.cat_file(f"{self.root}/{name}"))

    def open(self, name: str) -> Any:
        """The file for reading by ranges; FileNotFoundError when there is none."""
        with _told(self.path(name)):
            return self.fs.open(f"{self.root}/{name}", "rb")

    def exists(self, name: str) -> bool:
        with _told(self.path(name)):
            self.fs.invalidate_cache()
            return bool(self.fs.exists(f"{self.root}/{name}"))

    def size(self, name: str) -> int | None:
        """Bytes of the file, or None where there is none."""
        try:
            with _told(self.path(name)):
                return int(self.fs.size(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    def list(self) -> dict[str, int]:
        """Names and sizes of the files right here, in one listing; an absent folder is empty."""
        if self.local:
            try:
                with _told(self.url), os.scandir(self.root) as entries:
                    return {e.name: e.stat().st_size for e in entries if e.is_file() and not e.name.startswith(".")}
            except FileNotFoundError:
                return {}
        try:
            with _told(self.url):
                self.fs.invalidate_cache()
                entries = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        return {e["name"].rsplit("/", 1)[-1]: int(e["size"] or 0) for e in entries if e["type"] == "file"}

    def stamps(self) -> dict[str, str]:
        """Names of the files right here, each with what changes whenever it is written anew; "" where none is known."""
        try:
            with _told(self.url):
                if self.local:
                    with os.scandir(self.root) as entries:
                        files = [(e.name, e.stat()) for e in entries if e.is_file() and not e.name.startswith(".")]
                    return {name: f"{s.st_mtime_ns:x}-{s.st_ino:x}-{s.st_size:x}" for name, s in files}
                self.fs.invalidate_cache()
                found = [e for e in self.fs.ls(self.root, detail=True) if e["type"] == "file"]
        except FileNotFoundError:
            return {}
        return {e["name"].rsplit("/", 1)[-1]: str(e.get("ETag") or e.get("etag") or "") for e in found}

    def folders(self) -> Sequence[str]:
        """Names of the folders right here, sorted."""
        try:
            with _told(self.url):
                self.fs.invalidate_cache()
                entries = self.fs.ls(self.root, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def leftovers(self) -> Sequence[str]:
        """Temporary files of writers that were killed, right here; no listing shows them, nothing reads them."""
        if not self.local:
            return []
        absent = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with _told(self.url), absent, os.scandir(self.root) as entries:
            return sorted(e.name for e in entries if e.name.startswith(".") and e.name.endswith(".tmp"))
        return []

    def write(self, name: str, data: bytes) -> None:
        """The whole file or nothing; an older file of that name is replaced."""
        with _told(self.path(name)):
            if self.local:
                with _finished(f"{self.root}/{name}", data) as temporary:
                    os.replace(temporary, f"{self.root}/{name}")
            else:
                self.fs.pipe_file(f"{self.root}/{name}", data)

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        """A file written piece by piece, for what is too large for memory: there when the block ends well, else not.

        For an object store the pieces are spooled on local disk and put in one go.
        """
        if self.local:
            with _told(self.path(name)), _spooled(f"{self.root}/{name}") as (file, temporary):
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, f"{self.root}/{name}")
            return
        with tempfile.NamedTemporaryFile(prefix="raylens-") as spool:
            yield spool
            spool.flush()
            with _told(self.path(name)):  # what fails in the block is not the store's fault
                self.fs.put_file(spool.name, f"{self.root}/{name}")

    def create(self, name: str, data: bytes) -> bool:
        """Write the file only if there is none; says whether this call made it."""
        with _told(self.path(name)):
            if self.local:
                with _finished(f"{self.root}/{name}", data) as temporary:
                    return _placed(temporary, f"{self.root}/{name}")
            try:
                self.fs.pipe_file(f"{self.root}/{name}", data, mode="create")
            except FileExistsError:
                return self._is_there(name, data)
            except (NotImplementedError, TypeError):  # no conditional PUT: of two at the same moment the last wins
                if self.exists(name):
                    return self._is_there(name, data)
                self.fs.pipe_file(f"{self.root}/{name}", data)
            return True

    def _is_there(self, name: str, data: bytes) -> bool:
        """Whether a file has this very content: a request whose answer was lost is sent again, and finds its own."""
        try:
            return bool(self.fs.cat_file(f"{self.root}/{name}") == data)
        except FileNotFoundError:
            return False

    def remove(self, name: str) -> None:
        """Remove the file; one that is gone already is fine."""
        with contextlib.suppress(FileNotFoundError), _told(self.path(name)):
            self.fs.rm_file(f"{self.root}/{name}")


def _placed(temporary: str, path: str) -> bool:
    """Give a finished file its name, unless something has it; says whether it did."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    # FAT, some network and FUSE file systems: this folder takes files, for the temporary one is in it, but no links.
    if os.path.lexists(path):
        return False
    os.replace(temporary, path)
    return True


@contextlib.contextmanager
def _finished(path: str, data: bytes) -> Iterator[str]:
    """A finished, fsynced temporary file beside ``path``; after the block the folder itself is fsynced."""
    with _spooled(path) as (file, temporary):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        yield temporary


@contextlib.contextmanager
def _spooled(path: str) -> Iterator[tuple[IO[bytes], str]]:
    """An empty temporary file beside ``path`` and its name; after the block it is gone and the folder is fsynced."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file, str(temporary)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that do not sync folders
                raise
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
