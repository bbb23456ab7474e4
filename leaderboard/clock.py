"""Moments: seconds since 1970 where fractions matter, else UTC texts that sort as they follow."""

import time
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Connection

DAY_S = 24 * 60 * 60.0


def seconds(now: float | None = None) -> float:
    """``now`` itself, or the clock's."""
    return time.time() if now is None else now


def shared_seconds(connection: Connection, now: float | None = None) -> float:
    """``now`` itself, or the clock's that all who use this database share.

    Workers of several machines take jobs from one PostgreSQL, and their clocks may differ by more
    than a lease. A file of SQLite is used by one machine.
    """
    if now is None and connection.dialect.name == "postgresql":
        # not that of the transaction's beginning, which may have waited
        return float(connection.execute(sa.select(_EPOCH)).scalar_one())
    return seconds(now)


_EPOCH = sa.extract("epoch", sa.func.clock_timestamp())


def stamp(now: float | None = None) -> str:
    """A moment as the tables hold it.

    >>> stamp(1795413360.5)
    '2026-11-23T05:56:00Z'
    """
    return datetime.fromtimestamp(seconds(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def today(now: float | None = None) -> str:
    """The date in UTC.

    >>> today(1795413360.5)
    '2026-11-23'
    """
    return stamp(now)[:10]
