"""What the ``tomoprobe db`` commands do, without how it is typed or printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..leaderboard import backup as copies
from ..leaderboard import db as database
from ..leaderboard import integrity, merging

if TYPE_CHECKING:
    from sqlalchemy import Engine


class Upgraded(NamedTuple):
    """Revisions before and after; None: there were no tables."""

    before: str | None
    after: str | None


def upgrade(url: str) -> Upgraded:
    """Bring a database to the tables of this release; make them in an empty one.

    Raises:
        StorageError: it is of a newer release, or cannot be written.
    """
    with _opened(url) as engine:
        before = database.revision(engine)
        database.migrate(engine)
        return Upgraded(before, database.revision(engine))


def check(url: str) -> integrity.Checked:
    """Read everything and say what is wrong.

    Raises:
        StorageError: the database cannot be read.
    """
    with _opened(url) as engine:
        return integrity.check(engine)


def backup(url: str, file: Path, *, force: bool = False) -> Mapping[str, int]:
    """Copy a database into a file; gives the rows by table.

    Raises:
        StorageError: the database cannot be read, or the file cannot be written.
    """
    with _opened(url) as engine:
        return copies.backup(engine, file, force=force)


def restore(url: str, file: Path) -> Mapping[str, int]:
    """Fill an empty database from a file; gives the rows by table.

    Raises:
        StorageError: the file cannot be used, or the database has rows.
    """
    with _opened(url) as engine:
        return copies.restore(engine, file)


def merge(url: str, other: str) -> merging.Merged:
    """Add the units of another database, whose file is brought to the tables of this release.

    Raises:
        StorageError: either cannot be used, or they contradict each other.
    """
    with _opened(url) as engine, _opened(other) as read:
        database.migrate(engine)
        database.migrate(read)
        return merging.merge(engine, read)


@contextmanager
def _opened(url: str) -> Iterator[Engine]:
    engine = database.connect(url)
    try:
        yield engine
    finally:
        engine.dispose()
