"""How a job ends: done, failed or cancelled, and what that means for its submission.

A job ends in the transaction that stores what it made, and only if it is still held.
"""

import re
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import (
    EncoderError,
    IntakeError,
    IsolationError,
    ManifestError,
    ProbeError,
    TomoprobeError,
)
from . import quotas
from .accounts import audit
from .clock import seconds, shared_seconds, stamp
from .hiding import withheld
from .intake_records import ACTIVE, Fault, Job, JobKind, Planned, Submission
from .intake_tables import JOBS, SUBMISSIONS
from .job_rows import as_submission, cleaned, get_submission, held, select_submissions, update
from .opening import writing
from .storage_errors import reported
from .tables import RESULTS


def finish(connection: Connection, job: Job, *, log: str = "", now: float | None = None) -> None:
    """End a job that is done, as a part of the transaction that stores what it made.

    ``db.add(..., also=lambda connection: finish(connection, job))``

    Args:
        connection: in a writing transaction.
        job: as it was claimed.
        log: its last lines.
        now: seconds since 1970; None: the clock's.

    Raises:
        LostLease: the job is not ours any more. Let it pass, so that the transaction is undone.
    """
    _end(connection, job, "done", log, now)
    _note_unsafe(connection, job, now)
    _settle(connection, job.submission_id, now)


def finished(engine: Engine, job: Job, *, log: str = "", now: float | None = None) -> None:
    """``finish`` in a transaction of its own, for a job that stores no rows.

    Raises:
        LostLease: the job is not ours any more.
    """
    with reported(engine), writing(engine) as connection:
        finish(connection, job, log=log, now=now)


def checked(
    engine: Engine,
    job: Job,
    *,
    model_sha: str,
    planned: Sequence[Planned],
    log: str = "",
    now: float | None = None,
) -> Submission:
    """End a check that went well: what was planned waits, or the submission is a duplicate.

    It is one where another submission of the same model has all that is planned, or will have it
    and is of the same user; or where the operator has evaluated all of it. Then nothing is computed
    again. What the public does not see makes nobody else's submission a duplicate.

    Args:
        engine: of a migrated database.
        job: of kind ``"check"``, as it was claimed.
        model_sha: of the model.
        planned: what is to be done; empty: everything is done already.
        log: its last lines.
        now: seconds since 1970; None: the clock's.

    Raises:
        LostLease: the job is not ours any more.
    """
    with reported(engine), writing(engine) as connection:
        _end(connection, job, "done", log, now)
        mine = get_submission(connection, job.submission_id)
        values: dict[str, object] = {"model_sha": model_sha, "state": "evaluating"}
        same = _covering(connection, mine, model_sha, planned, now)
        if same is not None:
            values |= {
                "state": "duplicate",
                "duplicate_of": None if isinstance(same, bool) else same.id,
                "code": "duplicate",
                "stage": "check",
                "message": "The same model was submitted, or evaluated, before: same weights, "
                "network, card and readout, on all of these tasks.",
                "hint": "Look at its rows; to compare another readout, name it in the manifest.",
            }
            quotas.refund(connection, mine.id, "submission", now)
        update(connection, mine.id, now, **values)
        audit(connection, mine.user, "submission-checked", mine.id, now=now, model_sha=model_sha)
        if same is None:
            add_jobs(connection, job, planned, now)
            _settle(connection, mine.id, now)
        return get_submission(connection, mine.id)


def identify(connection: Connection, job: Job, model_sha: str, now: float | None = None) -> None:
    """Say of which model a submission is before its first row is stored, in that transaction.

    For checks that store rows themselves: else rows under an embargo would be seen until their end.
    ``db.add(..., also=lambda connection: identify(connection, job, model_sha))``

    Raises:
        IntakeError: predictions are said to be of a model that is another's, or was computed here.
        LostLease: the job is not ours any more.
    """
    held(connection, job, heartbeat=seconds(now))
    mine = get_submission(connection, job.submission_id)
    if mine.kind == "self-run":
        _check_unclaimed(connection, mine, model_sha)
    update(connection, job.submission_id, now, model_sha=model_sha)
    if mine.model_sha != model_sha:  # rows that are there already may be seen from now on, or not
        audit(connection, mine.user, "submission-checked", mine.id, now=now, model_sha=model_sha)


def _check_unclaimed(connection: Connection, mine: Submission, sha: str) -> None:
    """Nobody decides by mere predictions who sees another's model.

    Raises:
        IntakeError: it is one.
    """
    another = sa.exists().where(
        SUBMISSIONS.c.model_sha == sha, SUBMISSIONS.c.user_id != mine.user_id
    )
    computed = sa.exists().where(RESULTS.c.model_sha == sha, RESULTS.c.origin != "self-run")
    if connection.scalar(sa.select(sa.or_(another, computed))):
        raise IntakeError(
            "predictions-claimed",
            f"Model {sha[:12]} was submitted by somebody else, or computed here from its weights.",
            stage="check",
            hint="Submit the weights: predictions are taken only of models that nobody else has "
            "submitted.",
        )


def _covering(
    connection: Connection,
    mine: Submission,
    sha: str,
    planned: Sequence[Planned],
    now: float | None,
) -> Submission | bool | None:
    """The submission that makes this one a duplicate; True: rows of the operator; None: nothing.

    Rows on an incomplete copy of the data cover nothing: a worker with all of it may be there now.
    """
    asked = {pair for plan in planned for pair in plan.probes}
    if not asked:
        return None

    def stored(*conditions: sa.ColumnElement[bool]) -> set[tuple[str, str]]:
        query = sa.select(RESULTS.c.task, RESULTS.c.probe).where(
            RESULTS.c.model_sha == sha, *conditions
        )
        return {(task, probe) for task, probe in connection.execute(query.distinct())}

    complete = sa.and_(RESULTS.c.subset.is_(False), RESULTS.c.unsafe.is_(False))
    operators = stored(complete, RESULTS.c.origin == "local")
    hidden = sha in withheld(connection, now).models
    if not hidden and asked <= operators:
        return True
    ours = RESULTS.c.origin != "self-run"
    incomplete = stored(RESULTS.c.subset, ours) - stored(complete, ours)
    others = (
        select_submissions()
        .where(
            SUBMISSIONS.c.model_sha == sha,
            SUBMISSIONS.c.id != mine.id,
            SUBMISSIONS.c.state.in_(("evaluating", "done")),
            SUBMISSIONS.c.kind != "self-run",
            # another's may still fail, or be cancelled, and then nobody would have the rows
            sa.or_(
                SUBMISSIONS.c.user_id == mine.user_id,
                sa.and_(SUBMISSIONS.c.state == "done", sa.literal(not hidden)),
            ),
        )
        .order_by(SUBMISSIONS.c.created, SUBMISSIONS.c.id)
    )
    for row in connection.execute(others).mappings().all():
        other = as_submission(row)
        jobs = sa.select(JOBS.c.task, JOBS.c.probe, JOBS.c.state).where(
            JOBS.c.submission_id == other.id,
            JOBS.c.kind == "probe",
            JOBS.c.state.not_in(("failed", "cancelled")),
        )
        if asked <= {
            (task, probe)
            for task, probe, state in connection.execute(jobs)
            if state != "done" or (task, probe) not in incomplete
        }:
            return other
    return None


def add_jobs(
    connection: Connection, job: Job, planned: Sequence[Planned], now: float | None = None
) -> list[int]:
    """Let extractions wait, and their probes for them; what is there already is left as it is.

    Args:
        connection: in a writing transaction.
        job: whose submission it is for.
        planned: what is to be done.
        now: seconds since 1970; None: the clock's.

    Returns:
        Ids of the jobs, old and new.
    """

    def added(kind: JobKind, data_set: str, task: str, probe: str, after: int | None) -> int:
        key = {
            "submission_id": job.submission_id,
            "kind": kind,
            "data_set": data_set,
            "task": task,
            "probe": probe,
        }
        there = sa.select(JOBS.c.id).where(*(JOBS.c[name] == v for name, v in key.items()))
        found = connection.scalar(there)
        if found is not None:
            return found
        values = {"state": "waiting", "attempt": 0, "lost": 0, "log": "", "depends_on": after}
        row = sa.insert(JOBS).values(**key, **values, created=stamp(now)).returning(JOBS.c.id)
        return connection.execute(row).scalar_one()

    ids = []
    for plan in planned:
        first = added("extract", plan.data_set, plan.task, "", None)
        ids.append(first)
        ids += [added("probe", plan.data_set, task, probe, first) for task, probe in plan.probes]
    return ids


def fail(
    engine: Engine,
    job: Job,
    error: BaseException,
    log: str = "",
    *,
    fault: Fault | None = None,
    now: float | None = None,
) -> None:
    """End a job that failed; what depends on it is cancelled.

    Args:
        engine: of a migrated database.
        job: as it was claimed.
        error: an `IntakeError` is told as it is. Of others the submitter hears the message where
            it is the submission's fault, and else only what kind it was: it may name our paths.
        log: its last lines.
        fault: whose; None: of the submission for errors of intake, manifest, encoder and probe,
            else of the platform. It decides whether the submission is counted.
        now: seconds since 1970; None: the clock's.

    Raises:
        LostLease: the job is not ours any more.
    """
    theirs = (IntakeError, ManifestError, EncoderError, ProbeError)
    if fault is None:
        ours = isinstance(error, IsolationError) or not isinstance(error, theirs)
        fault = "platform" if ours else "submission"
    with reported(engine), writing(engine) as connection:
        held(connection, job, heartbeat=seconds(now))
        end_failed(connection, job, _told(error, job, fault), log, fault, now)


def _told(error: BaseException, job: Job, fault: Fault) -> IntakeError:
    if isinstance(error, IntakeError):
        return error
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()
    if fault == "submission" and isinstance(error, TomoprobeError):
        return IntakeError(kind, str(error), stage=job.kind, hint="Correct it and submit again.")
    return IntakeError(
        kind,
        f"The platform failed at this step ({type(error).__name__}).",
        stage=job.kind,
        hint="It is not counted against your quota. Submit it again later.",
    )


def end_failed(
    connection: Connection,
    job: Job,
    told: IntakeError,
    log: str,
    fault: Fault,
    now: float | None,
) -> None:
    """End a job that is held as failed, and cancel what depends on it; see ``fail``."""
    message, hint = cleaned(told.message, head=True), cleaned(told.hint, head=True)
    reason = {"code": told.code, "stage": told.stage, "message": message, "hint": hint}
    _end(connection, job, "failed", log, now, **reason)
    end_jobs(
        connection,
        sa.and_(JOBS.c.depends_on == job.id, JOBS.c.state == "waiting"),
        now,
        code="not-started",
        stage=job.kind,
        message=f"Job {job.id}, which this one needs, failed: {message}",
        hint=hint,
    )
    audit(
        connection,
        "platform",
        "job-failed",
        job.submission_id,
        now=now,
        job=job.id,
        code=told.code,
        fault=fault,
    )
    quotas.refund(connection, job.submission_id, fault, now)
    _settle(connection, job.submission_id, now)


def _end(
    connection: Connection,
    job: Job,
    state: str,
    log: str,
    now: float | None,
    **values: object,
) -> None:
    at = shared_seconds(connection, now)
    took = None if job.claimed is None else max(0.0, at - job.claimed)
    held(
        connection,
        job,
        state=state,
        ended=stamp(at),
        seconds=took,
        log=cleaned(log),
        lease_until=None,
        **values,
    )
    if job.kind == "extract" and took is not None:
        quotas.settle(connection, job.id, took)


def end_jobs(
    connection: Connection, which: sa.ColumnElement[bool], now: float | None, **values: object
) -> None:
    """Cancel jobs; a worker that holds one hears of it at its next heartbeat."""
    at = shared_seconds(connection, now)
    query = sa.select(JOBS).where(which, JOBS.c.state.in_(("waiting", "running")))
    for row in connection.execute(query).mappings().all():
        job = Job(**row)
        ended = {"state": "cancelled", "ended": stamp(at), "lease_until": None, **values}
        if job.state == "running" and job.claimed is not None:
            ended["seconds"] = max(0.0, at - job.claimed)
            quotas.settle(connection, job.id, at - job.claimed)
        connection.execute(sa.update(JOBS).where(JOBS.c.id == job.id).values(**ended))


def _note_unsafe(connection: Connection, job: Job, now: float | None) -> None:
    """A row without isolation marks its submission; see ``db.add``: the rows are there already."""
    if job.kind != "probe":
        return
    sha = sa.select(SUBMISSIONS.c.model_sha).where(SUBMISSIONS.c.id == job.submission_id)
    unsafe = sa.exists().where(
        RESULTS.c.model_sha == sha.scalar_subquery(),
        RESULTS.c.task == job.task,
        RESULTS.c.probe == job.probe,
        RESULTS.c.unsafe.is_(True),
    )
    if connection.scalar(sa.select(unsafe)):
        update(connection, job.submission_id, now, unsafe_local=True)


def _settle(connection: Connection, submission_id: str, now: float | None) -> None:
    """End a submission with its last job."""
    query = sa.select(JOBS).where(JOBS.c.submission_id == submission_id).order_by(JOBS.c.id)
    jobs = [Job(**row) for row in connection.execute(query).mappings()]
    if any(job.state in ("waiting", "running") for job in jobs):
        return
    current = get_submission(connection, submission_id)
    if current.state not in ACTIVE:
        return
    failed = [job for job in jobs if job.state == "failed"]
    if not failed:
        update(connection, submission_id, now, state="done")
        return
    first = failed[0]
    update(
        connection,
        submission_id,
        now,
        state="failed",
        **{name: getattr(first, name) for name in ("code", "stage", "message", "hint")},
    )
