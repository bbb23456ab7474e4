"""Submissions: what was asked for, how far it is, and what its user may still do with it.

All there is to submissions is named here; how jobs are shared among workers is in ``leases``,
how a job ends in ``endings``, how cards are edited in ``card_edits``, what readers report in
``disputes``.
"""

import secrets
from collections.abc import Sequence
from datetime import date, timedelta
from typing import get_args

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import AccessError, ConflictError, IntakeError, QuotaError, UnknownNameError
from . import quotas
from .accounts import audit, user_of
from .activity import depths, seen_workers, usual_seconds, workers
from .card_edits import EDITABLE, edit_card, edits
from .clock import seconds, stamp, today
from .disputes import answer, report, reports
from .endings import add_jobs, checked, end_jobs, fail, finish, finished, identify
from .hiding import withheld
from .intake_records import (
    ACTIVE,
    Identity,
    Job,
    JobKind,
    Place,
    Submission,
    SubmissionKind,
    SubmissionState,
    UploadKind,
)
from .intake_tables import JOBS, SUBMISSIONS, UPLOADS, USERS
from .job_rows import LostLease, find_submission, get_submission, list_submissions, update
from .leases import claim, give_back, heartbeat, reap
from .opening import writing
from .storage_errors import reported

__all__ = [
    "EDITABLE",
    "LostLease",
    "add_jobs",
    "answer",
    "cancel",
    "checked",
    "claim",
    "depths",
    "edit_card",
    "edits",
    "fail",
    "finish",
    "finished",
    "give_back",
    "heartbeat",
    "identify",
    "is_hidden",
    "jobs",
    "last_embargo",
    "place",
    "reap",
    "report",
    "reports",
    "submission",
    "submissions",
    "submit",
    "withdraw",
    "workers",
]

LONGEST_EMBARGO_DAYS = 731
"""Two years: longer than any review."""

_UPLOADS: dict[SubmissionKind, UploadKind | None] = {
    "weights": "safetensors",
    "onnx": "onnx",
    "seed": None,
    "self-run": "predictions",
}
"""What is uploaded for each kind of submission. Several tables of predictions come as one
safetensors file."""


# --- submitting ----------------------------------------------------------------------------------


def submit(
    engine: Engine,
    identity: Identity,
    *,
    manifest_text: str,
    name: str,
    kind: SubmissionKind,
    tasks: Sequence[str],
    probes: Sequence[str],
    upload_id: str | None = None,
    anonymous: bool = False,
    embargo_until: str | None = None,
    now: float | None = None,
) -> Submission:
    """Take a submission: its job is reserved, its check waits.

    Args:
        engine: of a migrated database.
        identity: with the scope ``submit``.
        manifest_text: TOML, read by nobody but the check.
        name: of the model, for lists.
        kind: where the network comes from.
        tasks: names.
        probes: names; empty: all that serve the tasks.
        upload_id: of a complete upload of the same user; None for a seed.
        anonymous: its rows are shown without name and authors.
        embargo_until: date from which its rows are shown, e.g. ``"2027-01-31"``.
        now: seconds since 1970; None: the clock's.

    Raises:
        AccessError: the token does not allow it.
        QuotaError: too many today, or no GPU seconds are left.
        ConflictError: the upload is not complete, of another kind, or in use.
        UnknownNameError: there is no such upload, or kind of submission.
        IntakeError: a date that cannot be.
    """
    if not identity.allows("submit"):
        raise AccessError("Submitting needs a token with the scope 'submit'.", 403)
    if kind not in get_args(SubmissionKind):
        raise UnknownNameError.of("kind of submission", kind, get_args(SubmissionKind))
    if any("\x00" in text for text in (manifest_text, name, upload_id or "", *tasks, *probes)):
        raise IntakeError(
            "zero-byte",
            "The submission holds a zero byte, which no database takes.",
            stage="upload",
            hint="Write the manifest as plain text.",
        )
    if embargo_until is not None:
        _check_embargo(embargo_until, now)
    id = secrets.token_hex(8)
    with reported(engine), writing(engine) as connection:
        _check_upload(connection, identity, kind, upload_id, now)
        connection.execute(
            sa.insert(SUBMISSIONS).values(
                id=id,
                user_id=identity.user.id,
                name=name,
                manifest=manifest_text,
                upload_id=upload_id,
                kind=kind,
                tasks=list(tasks),
                probes=list(probes),
                state="queued",
                anonymous=anonymous,
                embargo_until=embargo_until,
                created=stamp(now),
                updated=stamp(now),
                unsafe_local=False,
            )
        )
        quotas.reserve(connection, identity.user, "jobs", 1, id, now)
        quotas.check(connection, identity.user, "gpu_seconds", now)
        connection.execute(
            sa.insert(JOBS).values(
                submission_id=id,
                kind="check",
                data_set="",
                task="",
                probe="",
                state="waiting",
                attempt=0,
                lost=0,
                log="",
                created=stamp(now),
            )
        )
        audit(connection, identity.user.name, "submitted", id, now=now, kind=kind)
        return get_submission(connection, id)


def last_embargo(now: float | None = None) -> date:
    """The latest date that rows may be hidden until."""
    return date.fromisoformat(today(now)) + timedelta(days=LONGEST_EMBARGO_DAYS)


def _check_embargo(text: str, now: float | None) -> None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        said = f"'{text[:40]}' is no date."
    elif day > last_embargo(now):
        said = f"{text} is more than {LONGEST_EMBARGO_DAYS} days from now."
    else:
        return
    raise IntakeError(
        "embargo-date", said, stage="upload", hint="Write the date as 2027-01-31, at most two years"
    )


def _check_upload(
    connection: Connection,
    identity: Identity,
    kind: SubmissionKind,
    id: str | None,
    now: float | None,
) -> None:
    wanted = _UPLOADS[kind]
    if id is None or wanted is None:
        if id is not None or wanted is not None:
            what = f"an upload of {wanted}" if wanted else "no upload"
            raise ConflictError(f"A submission of kind '{kind}' takes {what}.")
        return
    found = connection.execute(sa.select(UPLOADS).where(UPLOADS.c.id == id)).mappings().first()
    if found is None or found["user_id"] != identity.user.id:
        raise UnknownNameError(f"There is no upload '{id[:40]}' of yours. Upload the file first.")
    if found["state"] != "complete" or found["expires"] <= seconds(now):
        state = "expired" if found["state"] == "complete" else found["state"]
        raise ConflictError(f"Upload {id} is {state}, not complete. Upload the file first.")
    if found["kind"] != wanted and (kind, found["kind"]) != ("self-run", "safetensors"):
        raise ConflictError(
            f"Upload {id} is of kind '{found['kind']}', but a submission of kind '{kind}' takes "
            f"'{wanted}'."
        )
    user = sa.select(SUBMISSIONS.c.id).where(
        SUBMISSIONS.c.upload_id == id, SUBMISSIONS.c.state.in_(ACTIVE)
    )
    other = connection.scalar(user)
    if other is not None:
        raise ConflictError(f"Submission {other} uses upload {id} already. Look at that one.")


# --- looking -------------------------------------------------------------------------------------


def submission(engine: Engine, id: str) -> Submission:
    """The submission of that id. Who may see it is for the caller to decide.

    Raises:
        UnknownNameError: there is none.
    """
    with reported(engine), engine.connect() as connection:
        return find_submission(connection, id)


def submissions(
    engine: Engine,
    user: str | None = None,
    state: SubmissionState | None = None,
    limit: int | None = None,
) -> list[Submission]:
    """Newest first; a filter that is None lets everything through.

    Args:
        engine: of a migrated database.
        user: name of a user.
        state: of the submissions.
        limit: at most so many.
    """
    with reported(engine), engine.connect() as connection:
        return list_submissions(connection, user, state, limit)


def jobs(engine: Engine, submission_id: str) -> list[Job]:
    """The jobs of a submission in the order in which they were added."""
    id = submission_id.replace("\x00", "")  # PostgreSQL refuses to look for that
    query = sa.select(JOBS).where(JOBS.c.submission_id == id).order_by(JOBS.c.id)
    with reported(engine), engine.connect() as connection:
        return [Job(**row) for row in connection.execute(query).mappings()]


def place(engine: Engine, id: str, now: float | None = None) -> Place | None:
    """Where a submission stands in the queue; None where nothing of it waits.

    The wait is what is before it, each at the median of its kind, shared among the workers.
    """
    with reported(engine), engine.connect() as connection:
        mine = connection.execute(
            sa.select(sa.func.min(JOBS.c.id), SUBMISSIONS.c.user_id)
            .join(SUBMISSIONS, SUBMISSIONS.c.id == JOBS.c.submission_id)
            .where(JOBS.c.submission_id == id, JOBS.c.state == "waiting")
            .group_by(SUBMISSIONS.c.user_id)
        ).first()
        if mine is None:
            return None
        first, user_id = mine
        before = sa.case((JOBS.c.state == "waiting", 1.0), else_=0.5)  # half of it is done
        query = (
            sa.select(JOBS.c.kind, JOBS.c.state, sa.func.count(), sa.func.sum(before))
            .where(
                sa.or_(
                    sa.and_(JOBS.c.state == "waiting", JOBS.c.id < first),
                    JOBS.c.state == "running",
                )
            )
            .group_by(JOBS.c.kind, JOBS.c.state)
        )
        ahead, wait = 0, 0.0
        known = True
        for kind, state, count, share in connection.execute(query).all():
            ahead += count if state == "waiting" else 0
            usual = usual_seconds(connection, kind)
            known = known and usual is not None
            wait += share * (usual or 0.0)
        there = len(seen_workers(connection, now))
        return Place(
            ahead=ahead,
            wait_s=wait / there if known and there else None,
            workers=there,
            held=_held_by_quota(connection, id, user_id, now),
        )


def _held_by_quota(connection: Connection, id: str, user_id: int, now: float | None) -> str:
    """Why the extractions of a submission are passed over; empty: they are not."""
    kinds: Sequence[JobKind] = connection.scalars(
        sa.select(JOBS.c.kind)
        .where(JOBS.c.submission_id == id, JOBS.c.state == "waiting")
        .distinct()
    ).all()
    if "extract" not in kinds:
        return ""
    row = connection.execute(sa.select(USERS).where(USERS.c.id == user_id)).mappings().one()
    try:
        quotas.check(connection, user_of(row), "gpu_seconds", now)
    except QuotaError as error:
        return str(error)
    return ""


def is_hidden(engine: Engine, model_sha: str, now: float | None = None) -> bool:
    """Whether the public does not see the rows of a model: withdrawn, or under embargo."""
    with reported(engine), engine.connect() as connection:
        return model_sha in withheld(connection, now).models


# --- changing one's mind -------------------------------------------------------------------------


def cancel(engine: Engine, id: str, by: str, now: float | None = None) -> Submission:
    """Stop a submission; what is done of it stays. Not counted where nothing had begun.

    Raises:
        ConflictError: it has ended already.
        UnknownNameError: there is none.
    """
    with reported(engine), writing(engine) as connection:
        found = find_submission(connection, id)
        if not found.active:
            raise ConflictError(
                f"Submission {id} is {found.state} already, so it cannot be cancelled. Rows that "
                "are on the board can be withdrawn."
            )
        _stop(connection, id, now)
        update(connection, id, now, state="cancelled", message=f"Cancelled by {by}.")
        audit(connection, by, "submission-cancelled", id, now=now)
        return get_submission(connection, id)


def _stop(connection: Connection, id: str, now: float | None) -> None:
    begun = sa.exists().where(JOBS.c.submission_id == id, JOBS.c.attempt > 0)
    if not connection.scalar(sa.select(begun)):
        quotas.refund(connection, id, "platform", now)
    end_jobs(connection, JOBS.c.submission_id == id, now)


def withdraw(engine: Engine, id: str, by: str, now: float | None = None) -> Submission:
    """Take the rows of a submission off the board; they are never deleted.

    They stay where another submission of the same model, or the operator, shows them.

    Raises:
        ConflictError: it is withdrawn already, or a duplicate, which has no rows.
        UnknownNameError: there is none.
    """
    with reported(engine), writing(engine) as connection:
        found = find_submission(connection, id)
        if found.state in ("withdrawn", "duplicate"):
            raise ConflictError(
                f"Submission {id} is {found.state}, so it has no rows on the board to withdraw."
            )
        _stop(connection, id, now)
        update(connection, id, now, state="withdrawn", message=f"Withdrawn by {by}.")
        audit(connection, by, "submission-withdrawn", id, now=now)
        return get_submission(connection, id)
