"""Opening a database: the engine, what SQLite needs to be told, and the migrations."""

from contextlib import AbstractContextManager
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import ArgumentError

from ..benchmark.errors import StorageError
from .storage_errors import reported

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another one. A unit is written in well under a second, so whoever
waits longer waits for a process that hangs."""

_MIGRATIONS = Path(__file__).parent / "migrations"


def connect(url: str, timeout_s: float = BUSY_TIMEOUT_S) -> Engine:
    """An engine on the database at ``url``; opens nothing yet.

    Args:
        url: of SQLAlchemy, e.g. ``"sqlite:///results.db"``.
        timeout_s: how long a SQLite writer waits for another one.

    Raises:
        StorageError: the URL is none, or its driver is not installed.
    """
    serializer = partial(dumps, ensure_ascii=False, allow_nan=False)
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, json_serializer=serializer, pool_pre_ping=True)
        engine = sa.create_engine(
            parsed, json_serializer=serializer, connect_args={"timeout": timeout_s}
        )
    except ArgumentError as error:
        raise StorageError(
            f"'{url}' is not the URL of a database. For a file write sqlite:///{url} (three "
            "slashes, four before an absolute path)."
        ) from error
    except ModuleNotFoundError as error:
        raise StorageError(
            f"The database driver '{error.name}' is not installed. Install it, or use a "
            "sqlite:///file.db URL, which needs none."
        ) from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Foreign keys, write-ahead log, and BEGIN left to us (the driver would delay it past DDL)."""
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # The mode is kept in the file, so a read-only file or folder that has it is left alone.
    if connection.execute("PRAGMA journal_mode").fetchone()[0] in ("delete", "truncate"):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except connection.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_READONLY"):
                raise


def _begin_sqlite(connection: Connection) -> None:
    """Writers take the lock first: one that started as a reader could not wait for it."""
    writes = connection.get_execution_options().get("tomoprobe_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def writing(engine: Engine) -> AbstractContextManager[Connection]:
    """A transaction that may write; committed at its end, rolled back on an exception."""
    return engine.execution_options(tomoprobe_writes=True).begin()


def migrate(engine: Engine) -> None:
    """Bring a fresh or an older database to the tables of this release.

    Raises:
        StorageError: it was written by a newer release, or cannot be written.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head()
    with reported(engine):
        with engine.connect() as connection:
            if MigrationContext.configure(connection).get_current_revision() == head:
                return  # nothing to write: a read-only copy can be served
        with writing(engine) as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            known = {revision.revision for revision in script.walk_revisions()}
            if current is not None and current not in known:
                raise StorageError(
                    f"The database {engine.url!r} has revision {current}, but this release knows "
                    f"only up to {head}: a newer tomoprobe wrote it. Update tomoprobe, or name "
                    "another database."
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
