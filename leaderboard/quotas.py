"""What a user may ask for, and what was used: each charge is a row, a refund marks it.

Whoever reserves does so inside a writing transaction, and one writer at a time has the database:
two requests can never both get what is left for one.
"""

from collections.abc import Mapping
from math import ceil

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import QuotaError
from .clock import DAY_S, seconds
from .intake_records import Fault, Quota, User
from .intake_tables import CHARGES, USERS
from .storage_errors import reported

__all__ = [
    "KINDS",
    "REFUNDS_PER_DAY",
    "Quota",
    "check",
    "refund",
    "release",
    "reserve",
    "settle",
    "used",
]

KINDS = ("jobs", "gpu_seconds", "bytes")

REFUNDS_PER_DAY = 3
"""How often in 24 hours a submission that failed by its own fault is not counted: enough for typing
errors, too few to use the check as a service."""

_WINDOW_S = {"jobs": DAY_S, "gpu_seconds": 30 * DAY_S}
"""Over which charges count; bytes count until they are deleted."""

_OWN_FAULT = "fault of the submission"

_WORDS = {
    "jobs": ("{limit:g} submissions in 24 hours", "Wait, or ask the operator for more."),
    "gpu_seconds": ("{hours:g} GPU-hours in 30 days", "Wait, or ask the operator for more."),
    "bytes": (
        "{limit:,.0f} bytes of uploads",
        "Delete uploads that are not needed, or ask the operator for more.",
    ),
}


def reserve(
    connection: Connection,
    user: User,
    kind: str,
    amount: float,
    submission_id: str | None = None,
    now: float | None = None,
    *,
    upload_id: str | None = None,
    job_id: int | None = None,
    partly: bool = False,
) -> None:
    """Charge a user, if the quota allows it.

    Args:
        connection: in a writing transaction.
        user: whose; the quota is read again in this transaction.
        kind: of ``KINDS``.
        amount: in the unit of the kind.
        submission_id: for what; likewise the next two.
        now: seconds since 1970; None: the clock's.
        upload_id: of bytes.
        job_id: of GPU seconds.
        partly: charge what is left, if that is something and less than ``amount``: an estimate,
            which ``settle`` corrects.

    Raises:
        QuotaError: there is too little left; says when there will be enough, if ever.
    """
    check(connection, user, kind, now, 0.0 if partly else amount)
    if partly:
        taken = sum(
            row.amount for row in connection.execute(_counting(user.id, kind, seconds(now)))
        )
        amount = min(amount, _limits(connection, user.id)[kind] - taken)
    connection.execute(
        sa.insert(CHARGES).values(
            user_id=user.id,
            submission_id=submission_id,
            upload_id=upload_id,
            job_id=job_id,
            kind=kind,
            amount=amount,
            at=seconds(now),
            why="",
        )
    )


def check(
    connection: Connection, user: User, kind: str, now: float | None = None, amount: float = 0.0
) -> None:
    """Whether a user may be charged; with no amount, whether anything is left at all.

    Raises:
        QuotaError: as ``reserve`` does.
    """
    at = seconds(now)
    limit = _limits(connection, user.id)[kind]
    charges = connection.execute(_counting(user.id, kind, at).order_by(CHARGES.c.at)).all()
    taken = sum(charge.amount for charge in charges)
    if taken + amount > limit or (not amount and taken >= limit):
        what, advice = _WORDS[kind]
        allowed = what.format(limit=limit, hours=limit / 3600)
        retry = None
        if amount <= limit and kind in _WINDOW_S:
            for charge in charges:  # the oldest leaves the window first
                taken -= charge.amount
                if taken + amount <= limit and (amount or taken < limit):
                    retry = max(1.0, ceil(charge.at + _WINDOW_S[kind] - at))
                    break
        raise QuotaError(
            f"{user.name} may have {allowed}; too little of it is left for this. {advice}", retry
        )


def _limits(connection: Connection, user_id: int) -> dict[str, float]:
    row = connection.execute(sa.select(USERS).where(USERS.c.id == user_id)).mappings().one()
    return {
        "jobs": row["jobs_per_day"],
        "gpu_seconds": row["gpu_hours_per_month"] * 3600,
        "bytes": row["bytes_kept"],
    }


def _counting(user_id: int, kind: str, at: float) -> sa.Select:
    """The charges that count at a moment."""
    query = sa.select(CHARGES.c.at, CHARGES.c.amount).where(
        CHARGES.c.user_id == user_id, CHARGES.c.kind == kind, CHARGES.c.refunded_at.is_(None)
    )
    if kind in _WINDOW_S:
        query = query.where(CHARGES.c.at > at - _WINDOW_S[kind])
    return query


def settle(connection: Connection, job_id: int, amount: float) -> None:
    """Replace what was reserved for a job by what it took."""
    connection.execute(
        sa.update(CHARGES)
        .where(CHARGES.c.job_id == job_id, CHARGES.c.refunded_at.is_(None))
        .values(amount=amount)
    )


def release(
    connection: Connection,
    *,
    upload_id: str | None = None,
    job_id: int | None = None,
    now: float | None = None,
) -> None:
    """Give back what an upload that is deleted, or a job that was lost, was charged."""
    which = CHARGES.c.upload_id == upload_id if job_id is None else CHARGES.c.job_id == job_id
    connection.execute(
        sa.update(CHARGES)
        .where(which, CHARGES.c.refunded_at.is_(None))
        .values(refunded_at=seconds(now), why="deleted" if job_id is None else "worker lost")
    )


def refund(
    connection: Connection, submission_id: str, fault: Fault, now: float | None = None
) -> bool:
    """Do not count a submission that failed: always, or ``REFUNDS_PER_DAY`` times.

    What the platform broke costs no GPU seconds either; what the submission broke does.

    Args:
        connection: in a writing transaction.
        submission_id: which.
        fault: whose.
        now: seconds since 1970; None: the clock's.

    Returns:
        Whether something was given back now.
    """
    at = seconds(now)
    kinds = ["jobs"]
    its = sa.and_(CHARGES.c.submission_id == submission_id, CHARGES.c.refunded_at.is_(None))
    if fault == "platform":
        kinds.append("gpu_seconds")
    else:
        user_id = connection.scalar(
            sa.select(CHARGES.c.user_id).where(its, CHARGES.c.kind == "jobs")
        )
        count = sa.select(sa.func.count()).where(
            CHARGES.c.user_id == user_id,
            CHARGES.c.why == _OWN_FAULT,
            CHARGES.c.refunded_at > at - DAY_S,
        )
        if user_id is None or (connection.scalar(count) or 0) >= REFUNDS_PER_DAY:
            return False
    why = _OWN_FAULT if fault == "submission" else "fault of the platform"
    changed = connection.execute(
        sa.update(CHARGES).where(its, CHARGES.c.kind.in_(kinds)).values(refunded_at=at, why=why)
    )
    return changed.rowcount > 0


def used(engine: Engine, user: User, now: float | None = None) -> Mapping[str, float]:
    """By kind, what counts against the quota now."""
    at = seconds(now)
    with reported(engine), engine.connect() as connection:
        return {
            kind: sum(row.amount for row in connection.execute(_counting(user.id, kind, at)))
            for kind in KINDS
        }
