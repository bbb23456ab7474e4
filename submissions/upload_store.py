"""Uploaded files on disk: arriving as ``NAME.part``, complete as ``NAME``.

Nothing here knows what a file holds. A file is written by one request at a time, which a lock of
the operating system makes sure of, also between processes of one machine.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..benchmark.errors import ConflictError, StorageError

_NAME = re.compile(r"[0-9a-f]{16}\.[a-z]{1,16}")
"""Of files: chosen by the server (see ``uploads.create``), so anything else is a fault of ours."""

_PART = ".part"
_READ_AT_ONCE = 1 << 20

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreFullError(StorageError):
    """The disk has no room for an upload."""


class UploadStore:
    """A folder of uploads.

    Args:
        folder: made when the first file comes.
        free_bytes: space that is left on its disk.
    """

    def __init__(self, folder: Path, free_bytes: int = 0) -> None:
        self.folder = folder
        self._free_bytes = free_bytes

    def path(self, name: str) -> Path:
        """Where a complete file is.

        Raises:
            ValueError: no name that the server chooses.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an upload.")
        return self.folder / name

    def make_room(self, size: int) -> None:
        """Make the folder, and see whether a file of ``size`` bytes fits.

        Raises:
            StoreFullError: it does not.
            StorageError: the folder cannot be made.
        """
        with self._explained():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        if size + self._free_bytes > free:
            raise StoreFullError(
                f"The server has no room for {size} bytes now. Nothing more was stored or "
                "charged. Try again later, or tell its operator."
            )

    @contextmanager
    def writing(self, name: str) -> Iterator[Part]:
        """The arriving file, for this request alone.

        Raises:
            ConflictError: another request is writing it.
            StoreFullError: the disk is full.
            StorageError: the folder cannot be written.
        """
        path = self._part(name)
        with self._explained():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise _busy() from None
                if not _is_at(descriptor, path):  # deleted between opening and locking
                    raise _busy()
                yield Part(descriptor, path)
            finally:
                os.close(descriptor)

    def complete(self, name: str) -> None:
        """The arriving file is whole: give it its name. Repeating it does no harm.

        Raises:
            StorageError: there is no such file, or the folder cannot be written.
        """
        with self._explained():
            if not self.path(name).exists():
                self._part(name).rename(self.path(name))
            _sync_folder(self.folder)

    def delete(self, name: str) -> None:
        """Delete whatever there is of a file."""
        with self._explained():
            for path in (self._part(name), self.path(name)):
                path.unlink(missing_ok=True)

    def names(self, older_than_s: float, now: float) -> list[str]:
        """Of the files there are, whole or not, that were last written so long ago."""
        if not self.folder.is_dir():
            return []
        found = set()
        for path in self.folder.iterdir():
            name = path.name.removesuffix(_PART)
            with suppress(FileNotFoundError):
                if _NAME.fullmatch(name) and now - path.stat().st_mtime > older_than_s:
                    found.add(name)
        return sorted(found)

    def check_writable(self) -> None:
        """Write a byte and delete it.

        Raises:
            StorageError: that is not possible.
        """
        with self._explained():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.folder / f".ready-{secrets.token_hex(8)}"
            path.write_bytes(b"1")
            path.unlink()

    def _part(self, name: str) -> Path:
        path = self.path(name)
        return path.with_name(path.name + _PART)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFullError(
                    "The server's disk is full. What arrived before stays; go on later, or tell "
                    "its operator."
                ) from error
            raise StorageError(
                f"The server's folder of uploads cannot be used ({error.strerror}). Tell its "
                "operator."
            ) from error


class Part:
    """An arriving file, locked by this request."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path

    def cut(self, offset: int) -> None:
        """Forget what is behind ``offset``: a chunk that did not arrive whole."""
        os.ftruncate(self._descriptor, offset)
        os.lseek(self._descriptor, offset, os.SEEK_SET)

    def size(self) -> int:
        """Bytes there are."""
        return os.fstat(self._descriptor).st_size

    def drop_if_empty(self) -> None:
        """Leave no file of an upload that does not take one."""
        if self.size() == 0:
            self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Append; where the disk is full, raises ``OSError``, which the store explains."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def sync(self) -> None:
        """On disk, before anybody is told that it arrived."""
        os.fsync(self._descriptor)

    def sha256(self) -> str:
        """Of the whole file."""
        digest = hashlib.sha256()
        position = 0
        while data := os.pread(self._descriptor, _READ_AT_ONCE, position):
            digest.update(data)
            position += len(data)
        return digest.hexdigest()


def _busy() -> ConflictError:
    return ConflictError(
        "Another request is writing this upload. Wait for its answer, then ask where to go on."
    )


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """So that a renamed file has its name also after a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
