"""A file on its way to a server: measured once, read in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..benchmark.errors import StorageError

_PIECE = 1 << 18
"""Bytes handed to the socket at a time, so that the bar moves on a slow line. 256 KiB."""


class File(NamedTuple):
    """A file to upload, measured."""

    path: Path
    size: int
    sha256: str


def measured(path: Path) -> File:
    """Size and sha256 of a file, by which the server knows it again.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return File(path, file.tell(), digest)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


def opened(path: Path) -> BinaryIO:
    """The file for reading.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


def pieces(
    source: BinaryIO, offset: int, size: int, sent: Callable[[int], None]
) -> Iterator[bytes]:
    """The bytes of a chunk, told as they go.

    Raises:
        StorageError: the file ends before them.
    """
    source.seek(offset)
    end = offset + size
    while offset < end:
        piece = source.read(min(_PIECE, end - offset))
        if not piece:
            raise StorageError(
                f"{source.name} became shorter while it was uploaded. Leave it alone and run the "
                "same command again."
            )
        yield piece
        offset += len(piece)
        sent(offset)
