"""What is going on: workers that were seen, jobs by state, and how long they usually take."""

from collections.abc import Sequence
from statistics import median

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from .clock import DAY_S, seconds
from .intake_records import JobKind
from .intake_tables import JOBS, WORKERS
from .storage_errors import reported

SEEN_S = 300.0
"""A worker that has not asked for five minutes counts as gone."""

_FIRST_GUESS_S = 600.0
"""GPU seconds that are reserved for an extraction while none has been measured."""

_MEASURED = 50
"""Jobs of a kind whose median is expected of the next."""


def usual_seconds(connection: Connection, kind: JobKind) -> float | None:
    """The median of the last jobs of a kind that were done; None: there are none."""
    query = (
        sa.select(JOBS.c.seconds)
        .where(JOBS.c.kind == kind, JOBS.c.state == "done", JOBS.c.seconds.is_not(None))
        .order_by(JOBS.c.id.desc())
        .limit(_MEASURED)
    )
    found = connection.scalars(query).all()
    return median(found) if found else None


def extraction_seconds(connection: Connection) -> float:
    """What is reserved for an extraction until it has ended."""
    return usual_seconds(connection, "extract") or _FIRST_GUESS_S


def note_worker(connection: Connection, owner: str, kinds: Sequence[JobKind], at: float) -> None:
    """Note that a worker asked for something to do."""
    values = {"kinds": list(kinds), "seen": at}
    changed = connection.execute(
        sa.update(WORKERS).where(WORKERS.c.owner == owner).values(**values)
    )
    if not changed.rowcount:
        connection.execute(sa.insert(WORKERS).values(owner=owner, **values))
        # of those that came and went; a day, so that the operator can still see them
        connection.execute(sa.delete(WORKERS).where(WORKERS.c.seen < at - DAY_S))


def workers(
    engine: Engine, now: float | None = None
) -> list[tuple[str, tuple[JobKind, ...], float]]:
    """(owner, kinds, seconds since it was seen) of those that asked for work or hold some."""
    with reported(engine), engine.connect() as connection:
        return seen_workers(connection, now)


def seen_workers(
    connection: Connection, now: float | None
) -> list[tuple[str, tuple[JobKind, ...], float]]:
    """``workers`` on a connection of the caller."""
    at = seconds(now)
    held = dict(
        connection.execute(
            sa.select(JOBS.c.owner, sa.func.max(JOBS.c.heartbeat))
            .where(JOBS.c.state == "running")
            .group_by(JOBS.c.owner)
        ).all()
    )
    found = []
    for row in connection.execute(sa.select(WORKERS)).mappings():
        ago = at - max(row["seen"], held.get(row["owner"], 0.0))
        if ago <= SEEN_S:
            found.append((row["owner"], tuple(row["kinds"]), max(0.0, ago)))
    return sorted(found)


def depths(engine: Engine) -> dict[tuple[str, str], int]:
    """Number of jobs by kind and state."""
    query = sa.select(JOBS.c.kind, JOBS.c.state, sa.func.count()).group_by(
        JOBS.c.kind, JOBS.c.state
    )
    with reported(engine), engine.connect() as connection:
        return {(kind, state): count for kind, state, count in connection.execute(query)}
