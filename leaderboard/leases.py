"""Who works on a job: a lease with heartbeats, and the attempt as its fencing token.

A worker claims a job for some seconds and prolongs that with heartbeats. Where they stop, ``reap``
gives the job to the next one. A worker that wakes up after that holds an older attempt: whatever it
ends then raises `LostLease`, and as a job ends in the transaction that stores its rows, nothing of
it is stored. So each unit is stored once, whoever dies when.
"""

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import IntakeError, QuotaError
from . import quotas
from .accounts import user_of
from .activity import extraction_seconds, note_worker
from .clock import shared_seconds, stamp
from .endings import end_failed
from .intake_records import Job, JobKind
from .intake_tables import JOBS, SUBMISSIONS, USERS, WORKERS
from .job_rows import cleaned, get_job, held, update
from .opening import writing
from .storage_errors import reported

LEASE_S = 60.0

_SEEN_NOTED_S = 30.0
"""How exactly it is known when a worker was seen: one without work must not write all the time."""


def claim(
    engine: Engine,
    owner: str,
    kinds: Sequence[JobKind],
    lease_s: float = LEASE_S,
    now: float | None = None,
    leave: Collection[int] = (),
) -> Job | None:
    """Take the next job for some seconds.

    Of the user who has the fewest running ones, then of the one who was served longest ago, then
    the oldest. For an extraction the expected GPU seconds are reserved, or what is left of them; a
    user who has none left is passed over until there are.

    Args:
        engine: of a migrated database.
        owner: name of the worker; no two share one.
        kinds: what it can do.
        lease_s: until when it is ours without a heartbeat.
        now: seconds since 1970; None: the clock's.
        leave: ids of jobs that are left to others.

    Returns:
        None where nothing can be done now.
    """
    with reported(engine), engine.connect() as connection:
        at = shared_seconds(connection, now)
        seen = connection.scalar(sa.select(WORKERS.c.seen).where(WORKERS.c.owner == owner))
        known = seen is not None and at - seen < _SEEN_NOTED_S
        if known and connection.execute(_runnable(kinds, leave).limit(1)).first() is None:
            return None  # nothing to write
    with reported(engine), writing(engine) as connection:
        note_worker(connection, owner, kinds, at)
        for row in _by_turn(connection, kinds, leave):
            if row["kind"] == "extract" and not _reserved(connection, row, at):
                continue
            connection.execute(
                sa.update(JOBS)
                .where(JOBS.c.id == row["id"])
                .values(
                    state="running",
                    attempt=JOBS.c.attempt + 1,
                    owner=owner,
                    lease_until=at + lease_s,
                    heartbeat=at,
                    claimed=at,
                    started=stamp(at),
                )
            )
            if row["kind"] == "check":
                update(connection, row["submission_id"], at, state="checking")
            return get_job(connection, row["id"])
    return None


def _runnable(kinds: Sequence[JobKind], leave: Collection[int]) -> sa.Select:
    """The oldest job of each user and kind that waits for nothing but a worker."""
    before = JOBS.alias("before")
    return (
        sa.select(SUBMISSIONS.c.user_id, JOBS.c.kind, sa.func.min(JOBS.c.id).label("id"))
        .join(SUBMISSIONS, SUBMISSIONS.c.id == JOBS.c.submission_id)
        .outerjoin(before, before.c.id == JOBS.c.depends_on)
        .where(
            JOBS.c.state == "waiting",
            JOBS.c.kind.in_(kinds),
            JOBS.c.id.not_in(leave),
            sa.or_(JOBS.c.depends_on.is_(None), before.c.state == "done"),
        )
        .group_by(SUBMISSIONS.c.user_id, JOBS.c.kind)
    )


def _by_turn(
    connection: Connection, kinds: Sequence[JobKind], leave: Collection[int]
) -> list[sa.RowMapping]:
    """Candidates, whose turn it is first."""
    first = connection.execute(_runnable(kinds, leave)).all()
    if not first:
        return []
    served = (
        sa.select(
            SUBMISSIONS.c.user_id,
            sa.func.sum(sa.case((JOBS.c.state == "running", 1), else_=0)),
            sa.func.max(JOBS.c.claimed),
        )
        .join(SUBMISSIONS, SUBMISSIONS.c.id == JOBS.c.submission_id)
        .where(SUBMISSIONS.c.user_id.in_({row.user_id for row in first}))
        .group_by(SUBMISSIONS.c.user_id)
    )
    turn = {user: (running, last or 0.0) for user, running, last in connection.execute(served)}
    query = (
        sa.select(JOBS.c.id, JOBS.c.kind, JOBS.c.submission_id, SUBMISSIONS.c.user_id)
        .join(SUBMISSIONS, SUBMISSIONS.c.id == JOBS.c.submission_id)
        .where(JOBS.c.id.in_([row.id for row in first]))
    )
    found = connection.execute(query).mappings()
    return sorted(found, key=lambda row: (*turn[row["user_id"]], row["id"]))


def _reserved(connection: Connection, row: sa.RowMapping, at: float) -> bool:
    """Reserve GPU seconds for an extraction; whether any were left."""
    query = sa.select(USERS).where(USERS.c.id == row["user_id"])
    owner = user_of(connection.execute(query).mappings().one())
    try:
        quotas.reserve(
            connection,
            owner,
            "gpu_seconds",
            extraction_seconds(connection),
            row["submission_id"],
            at,
            job_id=row["id"],
            partly=True,  # nobody knows how long it takes; a small quota would wait for ever
        )
    except QuotaError:
        return False
    return True


def heartbeat(
    engine: Engine,
    job: Job,
    lease_s: float = LEASE_S,
    now: float | None = None,
    log: str | None = None,
) -> Job:
    """Prolong the lease.

    Args:
        engine: of a migrated database.
        job: as it was claimed.
        lease_s: from now on.
        now: seconds since 1970; None: the clock's.
        log: its last lines so far; None: as they are.

    Raises:
        LostLease: the job is not ours any more.
    """
    with reported(engine), writing(engine) as connection:
        at = shared_seconds(connection, now)
        values: dict[str, object] = {"heartbeat": at, "lease_until": at + lease_s}
        if log is not None:
            values["log"] = cleaned(log)
        held(connection, job, **values)
        return get_job(connection, job.id)


def give_back(engine: Engine, job: Job, now: float | None = None, *, failed: bool = False) -> None:
    """Let another worker do it.

    Args:
        engine: of a migrated database.
        job: as it was claimed.
        now: seconds since 1970; None: the clock's.
        failed: by a fault of the platform, which counts as lost; else this worker is stopped, and
            nothing is counted.

    Raises:
        LostLease: the job is not ours any more.
    """
    with reported(engine), writing(engine) as connection:
        held(connection, job, **_WAITING, lost=job.lost + failed)
        _waits_again(connection, job, now)


_WAITING = {"state": "waiting", "owner": None, "lease_until": None, "heartbeat": None}


def _waits_again(connection: Connection, job: Job, now: float | None) -> None:
    quotas.release(connection, job_id=job.id, now=now)
    if job.kind == "check":
        update(connection, job.submission_id, now, state="queued")


def reap(engine: Engine, now: float | None = None, most_attempts: int = 3) -> list[Job]:
    """Take jobs from workers that sent no heartbeat until the end of their lease.

    Args:
        engine: of a migrated database.
        now: seconds since 1970; None: the clock's.
        most_attempts: a job that was lost so often is failed with the code ``"worker-lost"``, and
            its submission not counted; before, it waits for the next worker.

    Returns:
        Those jobs as they were held.
    """
    with reported(engine), engine.connect() as connection:
        at = shared_seconds(connection, now)
        overdue = sa.and_(JOBS.c.state == "running", JOBS.c.lease_until < at)
        if not connection.scalar(sa.select(sa.exists().where(overdue))):
            return []
    with reported(engine), writing(engine) as connection:
        query = sa.select(JOBS).where(overdue).order_by(JOBS.c.id)
        lost = [Job(**row) for row in connection.execute(query).mappings()]
        for job in lost:
            if job.lost + 1 < most_attempts:
                held(connection, job, **_WAITING, lost=job.lost + 1)
                _waits_again(connection, job, at)
                continue
            held(connection, job, lost=job.lost + 1)
            quotas.release(connection, job_id=job.id, now=at)
            end_failed(
                connection,
                job,
                IntakeError(
                    "worker-lost",
                    f"{job.lost + 1} workers in turn failed or stopped answering at this.",
                    stage=job.kind,
                    hint="It is not counted against your quota. Submit it again; if it happens "
                    "again, ask the operator to look at it.",
                ),
                job.log,
                "platform",
                at,
            )
    return lost
