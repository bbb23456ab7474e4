"""Rows of jobs and submissions, and the one way to change a job that is held."""

import re

import sqlalchemy as sa
from sqlalchemy import Connection

from ..benchmark.errors import ConflictError, UnknownNameError
from .clock import stamp
from .intake_records import Job, Submission, SubmissionState
from .intake_tables import JOBS, SUBMISSIONS, USERS

_LOG_LETTERS = 16_000
"""Of a job's log, the last ones are kept."""

_MESSAGE_LETTERS = 4_000

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Letters that would move a cursor, turn the direction of a line, or that no database holds."""


class LostLease(ConflictError):
    """The job is not ours any more. Stop; nothing was written."""

    def __init__(self, job: Job) -> None:
        super().__init__(
            f"Job {job.id} is not held by {job.owner} in attempt {job.attempt} any more: it was "
            "cancelled, or its lease ended. Nothing was stored; claim another job."
        )


def held(connection: Connection, job: Job, **values: object) -> None:
    """Change a job that is still ours: one statement, so that nobody comes between."""
    changed = connection.execute(
        sa.update(JOBS)
        .where(
            JOBS.c.id == job.id,
            JOBS.c.state == "running",
            JOBS.c.owner == job.owner,
            JOBS.c.attempt == job.attempt,
        )
        .values(**values)
    )
    if changed.rowcount != 1:
        raise LostLease(job)


def get_job(connection: Connection, id: int) -> Job:
    """The job of that id, which is there."""
    return Job(**connection.execute(sa.select(JOBS).where(JOBS.c.id == id)).mappings().one())


def get_submission(connection: Connection, id: str) -> Submission:
    """The submission of that id, which is there."""
    row = connection.execute(select_submissions().where(SUBMISSIONS.c.id == id)).mappings().one()
    return as_submission(row)


def find_submission(connection: Connection, id: str) -> Submission:
    """The submission of that id.

    Raises:
        UnknownNameError: there is none.
    """
    row = None
    if "\x00" not in id:  # PostgreSQL refuses to look for that
        query = select_submissions().where(SUBMISSIONS.c.id == id)
        row = connection.execute(query).mappings().first()
    if row is None:
        raise UnknownNameError(
            f"There is no submission '{id[:40]}'. `tomoprobe status` lists yours."
        )
    return as_submission(row)


def list_submissions(
    connection: Connection, user: str | None, state: SubmissionState | None, limit: int | None
) -> list[Submission]:
    """Newest first; a filter that is None lets everything through."""
    # several of one second: by their checks, which count up
    check = sa.select(sa.func.min(JOBS.c.id)).where(JOBS.c.submission_id == SUBMISSIONS.c.id)
    newest = (SUBMISSIONS.c.created.desc(), check.scalar_subquery().desc())
    query = select_submissions().order_by(*newest).limit(limit)
    if user is not None:
        query = query.where(USERS.c.name == user)
    if state is not None:
        query = query.where(SUBMISSIONS.c.state == state)
    return [as_submission(row) for row in connection.execute(query).mappings()]


def select_submissions() -> sa.Select:
    """With the names of their users."""
    return sa.select(*SUBMISSIONS.c, USERS.c.name.label("user")).join(
        USERS, USERS.c.id == SUBMISSIONS.c.user_id
    )


def as_submission(row: sa.RowMapping) -> Submission:
    """A row of ``select_submissions``."""
    lists = {name: tuple(row[name]) for name in ("tasks", "probes")}
    return Submission(**{**row, **lists})


def update(connection: Connection, id: str, now: float | None, **values: object) -> None:
    """Change a submission."""
    connection.execute(
        sa.update(SUBMISSIONS).where(SUBMISSIONS.c.id == id).values(**values, updated=stamp(now))
    )


def cleaned(text: str, head: bool = False) -> str:
    """Without control characters, and no longer than is kept: the end of it, or the beginning."""
    clean = _CONTROL.sub("", text.replace("\t", " "))
    return clean[:_MESSAGE_LETTERS] if head else clean[-_LOG_LETTERS:]
