"""Moments: seconds since 1970 where fractions matter, else UTC texts that sort as they follow."""

import time
from datetime import UTC, datetime

DAY_S = 24 * 60 * 60.0


def seconds(now: float | None = None) -> float:
    """``now`` itself, or the clock's."""
    return time.time() if now is None else now


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
