"""How the bytes of an upload come in: in order, as many as declared, and hashed.

Then the file is looked at from outside; no tensor, graph or table is read here.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterable, Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from ..benchmark.errors import ConflictError, IntakeError, UnknownNameError
from ..leaderboard import queue, uploads
from ..leaderboard.intake_records import Identity, Upload, UploadKind
from . import file_formats, headers
from .configuration import Configuration
from .upload_store import Part, UploadStore

_T = TypeVar("_T")

_WRITE_AT_ONCE = 1 << 20
"""Bytes that are gathered before a thread writes them: fewer would cost more in switching."""

_SHORTEST_LEFT_S = 60.0
"""An upload that ends sooner is not gone on with."""

_STRAY_S = 24 * 60 * 60.0
"""Files of no upload, e.g. after an older database was restored, are left alone for a day."""

_PARQUET = b"PAR1"
"""How a Parquet file begins and ends (Apache Parquet, File Format)."""


def announce(
    engine: Engine,
    store: UploadStore,
    configuration: Configuration,
    identity: Identity,
    kind: UploadKind,
    size: int,
    sha256: str,
) -> Upload:
    """Take note of a file that is to come: its bytes are reserved, and the disk has room.

    The same file again is the same upload, if it can still be used: so a broken transfer goes on,
    and needs room for what is missing only.

    Raises:
        IntakeError: it is larger than what is taken.
        QuotaError: the user's bytes do not suffice.
        StoreFullError: the disk is full.
    """
    if size > configuration.max_upload_bytes:
        raise too_large(size, configuration.max_upload_bytes)
    again = _under_way(engine, store, identity, kind, size, sha256)
    missing = size if again is None else size - again.received
    if missing:
        store.make_room(missing)
    return again or uploads.create(engine, identity, kind, size, sha256)


def _under_way(
    engine: Engine,
    store: UploadStore,
    identity: Identity,
    kind: UploadKind,
    size: int,
    sha256: str,
) -> Upload | None:
    mine = queue.submissions(engine, identity.user.name)
    used = {each.upload_id for each in mine if each.active}
    for each in reversed(uploads.uploads(engine, identity)):
        same = (each.token_id, each.kind, each.size, each.sha256) == (
            identity.token_id,
            kind,
            size,
            sha256,
        )
        there = each.state == "open" or (
            each.state == "complete" and each.id not in used and store.path(each.file).exists()
        )
        if same and there and each.expires > time.time() + _SHORTEST_LEFT_S:
            return each
    return None


def too_large(size: int, most: int) -> IntakeError:
    """A file, or a part of one, that is larger than what is taken."""
    return IntakeError(
        "too-large",
        f"{size} bytes are too many; at most {most} are taken.",
        stage="upload",
        hint="Leave out what the encoder does not run, or store the weights as float16.",
    )


async def receive(
    engine: Engine,
    store: UploadStore,
    identity: Identity,
    id: str,
    offset: int,
    chunks: AsyncIterable[bytes],
    chunk_bytes: int,
) -> Upload:
    """Write one chunk at ``offset``; the one that completes the file has it checked.

    A chunk counts when it has arrived whole: of one that breaks off nothing stays.

    Args:
        engine: of a migrated database.
        store: of the files.
        identity: who sends; the token has to be the one that opened the upload.
        id: of the upload.
        offset: where the sender believes to be.
        chunks: the bytes.
        chunk_bytes: the most that is taken.

    Raises:
        UnknownNameError: this token opened no such upload.
        ConflictError: the upload goes on elsewhere, or is not open; says where.
        IntakeError: more bytes than declared, another hash, or another kind of file; but for the
            first, the upload is over.
        StoreFullError: the disk is full.
    """
    upload = await run_in_threadpool(_at, engine, id, identity, offset)
    with store.writing(upload.file) as part:
        try:
            # what was read before the lock may be old
            upload = await run_in_threadpool(_at, engine, id, identity, offset)
        except BaseException:
            part.drop_if_empty()
            raise
        if upload.received == upload.size and store.path(upload.file).exists():
            # the answer of the last chunk was lost together with the server
            part.drop_if_empty()
            return await run_in_threadpool(uploads.finish, engine, id)
        if part.size() < offset:
            await _waited_for(_give_up, engine, store, upload, _lost())
        most = min(chunk_bytes, upload.size - offset)
        try:
            written, rest = await _write(part, offset, chunks, most)
        except BaseException:
            part.cut(offset)
            raise
        upload = await _waited_for(_keep, engine, part, id, offset, written, rest)
        if upload.received < upload.size:
            return upload
        return await _waited_for(_finish, engine, store, part, upload)


def discard(engine: Engine, store: UploadStore, upload: Upload) -> None:
    """Delete a file and give its bytes back.

    Raises:
        ConflictError: a submission needs it.
    """
    uploads.forget(engine, upload.id)
    store.delete(upload.file)


def sweep(engine: Engine, store: UploadStore, now: float | None = None) -> list[str]:
    """Delete the files that have been kept for long enough, and those that belong to nothing.

    May run in several processes at once.

    Returns:
        The names of the files.
    """
    deleted = []
    for upload in uploads.expired(engine, now):
        store.delete(upload.file)
        uploads.forget(engine, upload.id, now)
        deleted.append(upload.file)
    moment = time.time() if now is None else now
    for name in store.names(_STRAY_S, moment):
        try:
            stray = uploads.stored(engine, name.partition(".")[0]).state == "deleted"
        except UnknownNameError:
            stray = True
        if stray:
            store.delete(name)
            deleted.append(name)
    return deleted


def _at(engine: Engine, id: str, identity: Identity, offset: int) -> Upload:
    upload = uploads.get(engine, id, identity)
    if upload.state != "open":
        raise ConflictError(f"The upload is {upload.state}: nothing can be added.", upload.received)
    if upload.received != offset:
        raise ConflictError(
            f"The upload goes on at byte {upload.received}, not at {offset}.", upload.received
        )
    return upload


async def _write(
    part: Part, offset: int, chunks: AsyncIterable[bytes], most: int
) -> tuple[int, bytes]:
    """How many bytes were written, and the last ones, which are not yet."""
    part.cut(offset)
    written, gathered = 0, bytearray()
    async for data in chunks:
        if written + len(gathered) + len(data) > most:
            raise too_large(written + len(gathered) + len(data), most)
        gathered += data
        if len(gathered) >= _WRITE_AT_ONCE:
            await _waited_for(part.write, bytes(gathered))
            written += len(gathered)
            gathered.clear()
    return written, bytes(gathered)


def _keep(engine: Engine, part: Part, id: str, offset: int, written: int, rest: bytes) -> Upload:
    """Write the rest of a chunk and take note of it.

    Once the database has been asked nothing is cut: it may count the chunk even if its answer is an
    error. What it does not count is cut by the next request.
    """
    try:
        part.write(rest)
        part.sync()
    except BaseException:
        part.cut(offset)
        raise
    return uploads.advance(engine, id, offset, offset + written + len(rest))


async def _waited_for(work: Callable[..., _T], *given: Any) -> _T:
    """Run in a thread, and wait for its end also when the request is cancelled meanwhile.

    Else the file would be cut and closed while the thread still writes it, by a number that may be
    another file's by then.
    """
    # a future of a thread, unlike a task, is not cancelled when the loop ends
    running = asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *given))
    cancelled = None
    while not running.done():
        try:
            await asyncio.wait([running])  # does not cancel what it waits for
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        running.exception()  # nobody is there to be told
        raise cancelled
    return running.result()


# --- the whole file ----------------------------------------------------------------------------


def _finish(engine: Engine, store: UploadStore, part: Part, upload: Upload) -> Upload:
    found = part.sha256()
    try:
        if found != upload.sha256:
            raise IntakeError(
                "sha256-mismatch",
                f"The file arrived with sha256 {found}, but {upload.sha256} was declared.",
                stage="upload",
                hint="Compare the file with its original, and send it again.",
            )
        _look(part.path, upload.kind)
    except IntakeError as error:
        _give_up(engine, store, upload, error)
    store.complete(upload.file)
    return uploads.finish(engine, upload.id)


def _give_up(engine: Engine, store: UploadStore, upload: Upload, error: IntakeError) -> None:
    uploads.refuse(engine, upload.id, error)
    store.delete(upload.file)
    raise error


def _lost() -> IntakeError:
    return IntakeError(
        "upload-lost",
        "The server has lost a part of this file.",
        stage="upload",
        hint="Send it again from the beginning.",
    )


def _look(path: Path, kind: UploadKind) -> None:
    """Whether a file is what it was announced as, by its header or its first and last bytes."""
    if kind == "safetensors":
        headers.read_header(path)
        return
    with path.open("rb") as file:
        first = file.read(32)
        size = file.seek(0, 2)
        zipped = file_formats.ends_as_zip(file, size)
        file.seek(max(0, size - len(_PARQUET)))
        last = file.read()
    what = "a zip archive" if zipped else file_formats.described(first)
    if kind == "predictions":
        _look_at_predictions(path, first, last, what)
        return
    if what is not None or first.startswith(_PARQUET):
        raise IntakeError(
            "not-onnx",
            f"This is {what or 'a Parquet file'}, not an ONNX graph.",
            stage="upload",
            hint="Make one with `tomoprobe pack --onnx package.module:factory`.",
        )


def _look_at_predictions(path: Path, first: bytes, last: bytes, what: str | None) -> None:
    """One Parquet file, or several as rows of bytes in a safetensors file."""
    if what is None and first.startswith(_PARQUET) and last == _PARQUET and len(first) > 12:
        return
    if what is None and not first.startswith(_PARQUET):
        try:
            tensors = headers.read_header(path).tensors
        except IntakeError as error:
            if error.code != "not-safetensors":
                raise
        else:
            if all(t.dtype == "U8" and name.endswith(".parquet") for name, t in tensors.items()):
                return
    raise IntakeError(
        "not-predictions",
        f"This is {what or 'neither a Parquet file nor several in one safetensors file'}.",
        stage="upload",
        hint="Send what `tomoprobe evaluate --predictions DIR` wrote, by `tomoprobe submit "
        "--predictions DIR`.",
    )
