"""Files that arrive in chunks: what is declared, how far they are, and when they may be deleted.

The files themselves are the site's; here is what is known of them. An upload belongs to the token
that opened it: nobody else can see or continue it.
"""

import re
import secrets
from typing import get_args

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import AccessError, ConflictError, IntakeError, UnknownNameError
from .accounts import audit
from .clock import DAY_S, seconds, stamp
from .intake_records import ACTIVE, Identity, Upload, UploadKind
from .intake_tables import SUBMISSIONS, UPLOADS
from .opening import writing
from .quotas import release, reserve
from .storage_errors import reported

OPEN_S = DAY_S
"""How long an upload may rest: a day from its last chunk, over a night and a bad connection."""

KEPT_S = 30 * DAY_S
"""How long a complete file is kept, so that a failed submission can be made again without it
being sent again. One that an active submission uses is kept longer."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def create(
    engine: Engine,
    identity: Identity,
    kind: UploadKind,
    size: int,
    sha256: str,
    now: float | None = None,
) -> Upload:
    """Announce a file, whose bytes are reserved at once.

    Announcing it again with the same token gives the upload that is under way: whoever was
    interrupted goes on without having kept anything. A complete one may be in use, or without its
    file, which is not known here.

    Args:
        engine: of a migrated database.
        identity: with the scope ``submit``.
        kind: of file.
        size: bytes, at least 1.
        sha256: of the whole file, in lower case.
        now: seconds since 1970; None: the clock's.

    Raises:
        AccessError: the token does not allow it.
        IntakeError: a size or hash that cannot be.
        QuotaError: too many bytes.
    """
    if not identity.allows("submit"):
        raise AccessError("Uploading needs a token with the scope 'submit'.", 403)
    if kind not in get_args(UploadKind):
        raise IntakeError(
            "upload-kind",
            f"There is no kind of upload '{str(kind)[:40]}'.",
            stage="upload",
            hint=f"Expected one of {', '.join(get_args(UploadKind))}.",
        )
    if not 1 <= size < 1 << 62:
        raise IntakeError(
            "upload-size",
            f"A file of {size} bytes cannot be uploaded.",
            stage="upload",
            hint="Declare the size of the file in bytes.",
        )
    if not _SHA256.fullmatch(sha256):
        raise IntakeError(
            "upload-hash",
            "The SHA-256 of an upload is 64 lower-case hexadecimal digits.",
            stage="upload",
            hint="Declare the hash of the whole file.",
        )
    id = secrets.token_hex(8)
    same = (
        sa.select(UPLOADS.c.id)
        .where(
            UPLOADS.c.token_id == identity.token_id,
            UPLOADS.c.kind == kind,
            UPLOADS.c.size == size,
            UPLOADS.c.sha256 == sha256,
            UPLOADS.c.state == "open",
            UPLOADS.c.expires > seconds(now),
        )
        .order_by(UPLOADS.c.received.desc(), UPLOADS.c.id)
    )
    with reported(engine), writing(engine) as connection:
        if (known := connection.scalar(same)) is not None:
            return _upload(connection, known)
        connection.execute(
            sa.insert(UPLOADS).values(
                id=id,
                user_id=identity.user.id,
                token_id=identity.token_id,
                kind=kind,
                size=size,
                sha256=sha256,
                received=0,
                state="open",
                file=f"{id}.{kind}",
                created=stamp(now),
                expires=seconds(now) + OPEN_S,
            )
        )
        reserve(connection, identity.user, "bytes", size, now=now, upload_id=id)
        return _upload(connection, id)


def get(engine: Engine, id: str, identity: Identity) -> Upload:
    """The upload, for the token that opened it.

    Raises:
        UnknownNameError: there is none, or it is another's.
    """
    found = stored(engine, id)
    if (found.user_id, found.token_id) != (identity.user.id, identity.token_id):
        raise _unknown(id)
    return found


def stored(engine: Engine, id: str) -> Upload:
    """The upload, whoever asks: for the platform itself.

    Raises:
        UnknownNameError: there is none.
    """
    with reported(engine), engine.connect() as connection:
        return _upload(connection, id)


def uploads(engine: Engine, identity: Identity) -> list[Upload]:
    """What a user has sent and is not deleted, with whatever token, oldest first."""
    query = (
        sa.select(UPLOADS)
        .where(UPLOADS.c.user_id == identity.user.id, UPLOADS.c.state != "deleted")
        .order_by(UPLOADS.c.created, UPLOADS.c.id)
    )
    with reported(engine), engine.connect() as connection:
        return [Upload(**row) for row in connection.execute(query).mappings()]


def advance(
    engine: Engine, id: str, offset: int, new_offset: int, now: float | None = None
) -> Upload:
    """Note that the bytes from ``offset`` up to ``new_offset`` are on the disk.

    Raises:
        ConflictError: the upload is elsewhere (its ``offset`` says where), is not open any more,
            or would be longer than declared.
        UnknownNameError: there is none.
    """
    with reported(engine), writing(engine) as connection:
        found = _open(connection, id, now)
        if offset != found.received:
            raise ConflictError(
                f"The upload has {found.received} bytes, but the chunk starts at {offset}. Go on "
                f"at {found.received}.",
                found.received,
            )
        if not offset <= new_offset <= found.size:
            raise ConflictError(
                f"The chunk ends at {new_offset}, but {found.size} bytes were declared. Send what "
                "is missing and no more.",
                found.received,
            )
        _set(connection, id, received=new_offset, expires=seconds(now) + OPEN_S)
        return _upload(connection, id)


def finish(engine: Engine, id: str, now: float | None = None) -> Upload:
    """Note that the file is whole and its hash is right.

    Raises:
        ConflictError: bytes are missing, or it is not open any more.
        UnknownNameError: there is none.
    """
    with reported(engine), writing(engine) as connection:
        found = _open(connection, id, now)
        if found.received != found.size:
            raise ConflictError(
                f"The upload has {found.received} of {found.size} bytes. Send the others first.",
                found.received,
            )
        _set(connection, id, state="complete", expires=seconds(now) + KEPT_S)
        return _upload(connection, id)


def refuse(engine: Engine, id: str, error: IntakeError, now: float | None = None) -> Upload:
    """Note why the file is not taken; it may be deleted at once.

    Raises:
        ConflictError: it is neither open nor complete.
        UnknownNameError: there is none.
    """
    reason = {
        "code": error.code,
        "stage": error.stage,
        "message": error.message,
        "hint": error.hint,
    }
    with reported(engine), writing(engine) as connection:
        found = _upload(connection, id)
        if found.state not in ("open", "complete"):
            raise _not_open(found)
        _set(connection, id, state="refused", reason=reason, expires=seconds(now))
        audit(connection, "platform", "upload-refused", id, now=now, code=error.code)
        return _upload(connection, id)


def expired(engine: Engine, now: float | None = None) -> list[Upload]:
    """Whose file may be deleted; whoever has deleted one says so with ``forget``.

    Uploads that rested too long become ``"expired"`` and take no more bytes. None that an active
    submission uses is among them. Asked again, it names those that were not forgotten again.
    """
    in_use = sa.select(SUBMISSIONS.c.upload_id).where(
        SUBMISSIONS.c.upload_id.is_not(None), SUBMISSIONS.c.state.in_(ACTIVE)
    )
    overdue = sa.and_(UPLOADS.c.state.in_(("open", "complete")), UPLOADS.c.expires <= seconds(now))
    free = UPLOADS.c.id.not_in(in_use)
    with reported(engine), writing(engine) as connection:
        connection.execute(sa.update(UPLOADS).where(overdue, free).values(state="expired"))
        query = sa.select(UPLOADS).where(UPLOADS.c.state.in_(("expired", "refused")), free)
        found = [Upload(**row) for row in connection.execute(query).mappings()]
    return sorted(found, key=lambda upload: (upload.created, upload.id))


def forget(engine: Engine, id: str, now: float | None = None) -> None:
    """Note that the file is deleted, which gives its bytes back to the user.

    Raises:
        ConflictError: an active submission uses it.
        UnknownNameError: there is none.
    """
    with reported(engine), writing(engine) as connection:
        _upload(connection, id)
        using = connection.scalar(
            sa.select(SUBMISSIONS.c.id).where(
                SUBMISSIONS.c.upload_id == id, SUBMISSIONS.c.state.in_(ACTIVE)
            )
        )
        if using is not None:
            raise ConflictError(
                f"Submission {using} still needs this upload. Wait for it, or cancel it first."
            )
        _set(connection, id, state="deleted", expires=seconds(now))
        release(connection, upload_id=id, now=now)


def _upload(connection: Connection, id: str) -> Upload:
    found = None
    if "\x00" not in id:  # PostgreSQL refuses to look for that
        query = sa.select(UPLOADS).where(UPLOADS.c.id == id)
        found = connection.execute(query).mappings().first()
    if found is None:
        raise _unknown(id)
    return Upload(**found)


def _unknown(id: str) -> UnknownNameError:
    return UnknownNameError(
        f"There is no upload '{id[:40]}' of this token. Continue one with the token that began "
        "it, or begin anew."
    )


def _open(connection: Connection, id: str, now: float | None) -> Upload:
    found = _upload(connection, id)
    if found.state != "open" or found.expires <= seconds(now):
        raise _not_open(found)
    return found


def _not_open(found: Upload) -> ConflictError:
    state = "expired" if found.state == "open" else found.state
    return ConflictError(f"The upload is {state}, not open. Begin a new one.", found.received)


def _set(connection: Connection, id: str, **values: object) -> None:
    connection.execute(sa.update(UPLOADS).where(UPLOADS.c.id == id).values(**values))
