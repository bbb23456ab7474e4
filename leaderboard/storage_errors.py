"""What a database says when it fails, turned into what its user can do."""

from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Error as SqliteError

from sqlalchemy import URL, Engine
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import (
    TimeoutError as PoolTimeoutError,
)

from ..benchmark.errors import StorageError

_LOCKED = (
    "is locked: another process has been writing to it for too long. Wait for it or "
    "stop it, then run the same command again; what is stored is not computed twice."
)

_FULL = (
    "cannot grow: the disk is full. Free some space, then run the same command "
    "again; what is stored is not computed twice."
)

_SQLITE = {
    "SQLITE_BUSY": _LOCKED,
    "SQLITE_LOCKED": _LOCKED,
    "SQLITE_READONLY": "is read-only. Give the file and its folder write permission, or name "
    "another database.",
    "SQLITE_FULL": _FULL,
    "SQLITE_CANTOPEN": "cannot be opened. Its folder has to exist and must be readable and "
    "writable: SQLite keeps two more files beside the database.",
    "SQLITE_NOTADB": "is not a SQLite database. Name another file.",
    "SQLITE_CORRUPT": "is damaged. Restore a backup, or evaluate again into a new database.",
    "SQLITE_IOERR": "cannot be read or written: the disk reports an error. It may be full, or on a "
    "network file system, which SQLite's write-ahead log does not support. Use a local disk.",
}
"""By the primary result code (https://www.sqlite.org/rescode.html)."""

_NO_TABLES = (
    "has no tomoprobe tables. Let `tomoprobe evaluate --db URL` or `tomoprobe quickstart` "
    "create them."
)

_AGAIN = "Run the same command again; what is stored is not computed twice."

_FORBIDDEN = (
    "does not permit this to its user ({said}). Let its owner grant it, e.g. GRANT USAGE, CREATE "
    "ON SCHEMA public TO the user, or connect as the owner of the tables."
)

_POSTGRESQL = {
    "42P01": _NO_TABLES,
    "42501": _FORBIDDEN,
    "3F000": _FORBIDDEN,  # no schema of the search path that this user may use
    "25006": "is read-only: a standby, or opened so. Name the server that is written to.",
    "53100": _FULL,
    "53300": "has no connection left ({said}). Stop a process that uses it, or raise the server's "
    "max_connections.",
    "55P03": _LOCKED,
    "22P05": "cannot hold these letters ({said}). Create it with the encoding UTF8: "
    "createdb --encoding UTF8 --template template0 NAME.",
    "08": f"was lost ({{said}}). {_AGAIN}",
    "40": f"gave way to another process ({{said}}). {_AGAIN}",
    "53": "has run out of a resource ({said}). Ask whoever runs the server.",
    "57": f"stopped this ({{said}}). Check that the server runs. {_AGAIN}",
    "58": "cannot be read or written: the server reports an error of its system ({said}).",
    "XX": "is damaged ({said}). Restore a backup with `tomoprobe db restore`.",
}
"""By SQLSTATE, or by its first two letters, the class
(https://www.postgresql.org/docs/current/errcodes-appendix.html)."""

_CHECK = "Check that the server runs and the URL is right."

_REFUSED = {
    "password": "Check the user and the password in the URL, or in ~/.pgpass or PGPASSWORD.",
    'role "': "Check the user in the URL, or create it with createuser.",
    'database "': "Check the name at the end of the URL, or create it with createdb NAME.",
    "pg_hba.conf": "The server's pg_hba.conf does not let this user in from here.",
}
"""What to do by a word of the server's message: a refused connection has no SQLSTATE."""


@contextmanager
def reported(engine: Engine) -> Iterator[None]:
    """Turn failures of the database into StorageError; anything else is a bug and passes."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        advice = _advice(error)
        if advice is None:
            raise
        said = _without_password(str(error.orig).strip(), engine.url)
        raise StorageError(
            f"The database {shown(engine.url)} {advice.format(said=said)}"
        ) from error
    except PoolTimeoutError as error:
        raise StorageError(
            f"The database {shown(engine.url)} answers too slowly: all connections of this "
            "process have been busy for too long. Try again, or ask whoever runs the server."
        ) from error


def shown(url: URL) -> str:
    """The URL as it may be printed: without passwords, wherever they stand."""
    secrets = [name for name in url.query if "password" in name]
    return url.difference_update_query(secrets).render_as_string(hide_password=True)


def _without_password(said: str, url: URL) -> str:
    for secret in (url.password, url.query.get("password")):
        if isinstance(secret, str) and secret:
            said = said.replace(secret, "***")
    return said


def _advice(error: DBAPIError) -> str | None:
    """What follows the database's name in a message, ``{said}`` being the driver's words."""
    cause = error.orig
    if isinstance(cause, SqliteError):
        if "no such table" in str(cause):
            return _NO_TABLES
        if "Could not decode" in str(cause):  # the driver's, without a code
            return _SQLITE["SQLITE_CORRUPT"]
        # extended codes are primary codes with a suffix, e.g. SQLITE_IOERR_WRITE
        code = getattr(cause, "sqlite_errorname", "")
        found = (a for c, a in _SQLITE.items() if code == c or code.startswith(f"{c}_"))
        return next(found, None)
    state = getattr(cause, "sqlstate", None)
    if state is not None:
        return _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2])
    said = str(cause)
    if isinstance(error, OperationalError | InterfaceError):
        advice = (text for word, text in _REFUSED.items() if word in said)
        return f"cannot be used: {{said}}. {next(advice, _CHECK)}"
    return f"cannot be used: {{said}}. {_CHECK}" if "invalid connection option" in said else None
