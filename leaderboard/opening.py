"""Opening a database: the engine, what it needs to be told, and the migrations."""

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
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import ArgumentError

from ..benchmark.errors import StorageError
from .storage_errors import reported, shown

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another one. A unit is written in well under a second, so whoever
waits longer waits for a process that hangs."""

_CONNECT_TIMEOUT_S = 10
"""How long a server may take to answer at first; libpq itself would wait for minutes."""

_WRITERS = 0x746F6D6F
"""Key of PostgreSQL's advisory lock that writers hold: "tomo" in ASCII, else arbitrary."""

_MIGRATIONS = Path(__file__).parent / "migrations"

_serializer = partial(dumps, ensure_ascii=False, allow_nan=False)


# --- engines -----------------------------------------------------------------------------------


def connect(url: str | URL, timeout_s: float = BUSY_TIMEOUT_S) -> Engine:
    """An engine on the database at ``url``; opens nothing yet.

    Args:
        url: of SQLite or PostgreSQL as SQLAlchemy writes it, e.g. ``"sqlite:///results.db"`` or
            ``"postgresql://user@host/name"``.
        timeout_s: how long a writer waits for another one.

    Raises:
        StorageError: the URL is none, is of another kind of database, or its driver is not
            installed.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed, timeout_s)
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return _postgresql(parsed.set(drivername="postgresql+psycopg"), timeout_s)
    raise StorageError(
        f"{shown(parsed)} is of a kind of database that tomoprobe does not know. Expected "
        "sqlite:///file.db or postgresql://user@host/name."
    )


def _parsed(url: str | URL) -> URL:
    try:
        return sa.make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        if "://" in str(url):  # is not repeated: it may hold a password
            raise StorageError(
                "The URL of the database cannot be read. Expected sqlite:///file.db or "
                "postgresql://user:password@host:port/name, with @, : and / inside the password "
                "written as %40, %3A and %2F."
            ) from error
        raise StorageError(
            f"'{url}' is not the URL of a database. For a file write sqlite:///{url} (three "
            "slashes, four before an absolute path)."
        ) from error


def _sqlite(url: URL, timeout_s: float) -> Engine:
    try:
        engine = sa.create_engine(
            url, json_serializer=_serializer, connect_args={"timeout": timeout_s}
        )
    except (ArgumentError, ModuleNotFoundError) as error:
        raise StorageError(
            f"{shown(url)} is not the URL of a SQLite file. Expected sqlite:///file.db (three "
            "slashes, four before an absolute path)."
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
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")


def _postgresql(url: URL, timeout_s: float) -> Engine:
    options: dict[str, Any] = {"client_encoding": "utf8"}
    if "connect_timeout" not in url.query:
        options["connect_timeout"] = _CONNECT_TIMEOUT_S
    try:
        engine = sa.create_engine(
            url,
            json_serializer=_serializer,
            connect_args=options,
            # a connection that the server closed meanwhile is replaced before it is used
            pool_pre_ping=True,
            # whoever waited for the writers' lock has to see what was written before it
            isolation_level="READ COMMITTED",
        )
    except ImportError as error:
        raise StorageError(
            "The database driver 'psycopg' is not installed. PostgreSQL needs it: pip install "
            "'tomoprobe[postgres]', or use a sqlite:///file.db URL, which needs none."
        ) from error
    event.listen(engine, "begin", partial(_begin_postgresql, timeout_s))
    return engine


def _begin_postgresql(timeout_s: float, connection: Connection) -> None:
    """One writer at a time, as in SQLite.

    So that the ids of rows grow in the order in which they are committed: who has read up to an
    id has missed none below it.
    """
    if _writes(connection):
        milliseconds = max(1, round(timeout_s * 1000))  # 0 would be for ever
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def _writes(connection: Connection) -> bool:
    return connection.get_execution_options().get("tomoprobe_writes", False)


def writing(engine: Engine) -> AbstractContextManager[Connection]:
    """A transaction that may write; committed at its end, rolled back on an exception.

    One at a time has the database: others wait for it, readers do not.
    """
    return engine.execution_options(tomoprobe_writes=True).begin()


# --- migrations --------------------------------------------------------------------------------


def known_revisions() -> list[str]:
    """What this release knows, newest first."""
    script = ScriptDirectory.from_config(_config())
    return [found.revision for found in script.walk_revisions("base", "head")]


def newest() -> str:
    """The revision of this release."""
    return known_revisions()[0]


def revision_of(connection: Connection) -> str | None:
    """The revision of a database; None where it has no tables of tomoprobe."""
    return MigrationContext.configure(connection).get_current_revision()


def revision(engine: Engine) -> str | None:
    """``revision_of`` on a connection of its own.

    Raises:
        StorageError: the database cannot be read.
    """
    with reported(engine), engine.connect() as connection:
        return revision_of(connection)


def migrate(engine: Engine) -> None:
    """Bring a fresh or an older database to the tables of this release.

    Raises:
        StorageError: it was written by a newer release, or cannot be written.
    """
    if revision(engine) != newest():  # else nothing to write: a read-only copy can be served
        migrate_to(engine, "head")


def migrate_to(engine: Engine, target: str) -> None:
    """Bring a database to a revision, up or down; what an older one has no table for is lost.

    Args:
        engine: of any database.
        target: a revision, ``"head"`` for the newest, or ``"base"`` for no tables at all.

    Raises:
        StorageError: there is no such revision, a newer release wrote the database, or it cannot
            be written. Then nothing has changed.
    """
    with reported(engine), writing(engine) as connection:
        move(connection, target)


def move(connection: Connection, target: str) -> None:
    """``migrate_to`` inside a transaction of the caller."""
    known = known_revisions()
    current = revision_of(connection)
    if current is not None and current not in known:
        raise StorageError(
            f"The database {shown(connection.engine.url)} has revision {current}, but this release "
            f"knows only up to {known[0]}: a newer tomoprobe wrote it. Update tomoprobe, or name "
            "another database."
        )
    if target not in ("base", *known, "head"):
        raise StorageError(
            f"There is no revision '{target}'. Known: base, {', '.join(reversed(known))}, head."
        )
    age = {"head": 0, **{name: k for k, name in enumerate(known)}, "base": len(known)}
    config = _config()
    config.attributes["connection"] = connection
    older = age[target] > age[current or "base"]
    try:
        (command.downgrade if older else command.upgrade)(config, target)
    except CommandError as error:  # of a migration that would lose what must not be lost
        raise StorageError(str(error)) from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
