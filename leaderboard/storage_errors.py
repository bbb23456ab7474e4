"""What a database says when it fails, turned into what its user can do."""

from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Error as SqliteError

from sqlalchemy import Engine
from sqlalchemy.exc import (
    DatabaseError,
    DataError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)

from ..benchmark.errors import StorageError

_ADVICE = {
    "SQLITE_BUSY": "is locked: another process has been writing to it for too long. Wait for it or "
    "stop it, then run the same command again; what is stored is not computed twice.",
    "SQLITE_READONLY": "is read-only. Give the file and its folder write permission, or name "
    "another database.",
    "SQLITE_FULL": "cannot grow: the disk is full. Free some space, then run the same command "
    "again; what is stored is not computed twice.",
    "SQLITE_CANTOPEN": "cannot be opened. Its folder has to exist and must be readable and "
    "writable: SQLite keeps two more files beside the database.",
    "SQLITE_NOTADB": "is not a SQLite database. Name another file.",
    "SQLITE_CORRUPT": "is damaged. Restore a copy, or evaluate again into a new database.",
    "SQLITE_IOERR": "cannot be read or written: the disk reports an error. It may be full, or on a "
    "network file system, which SQLite's write-ahead log does not support. Use a local disk.",
}
"""By the primary result code of SQLite (https://www.sqlite.org/rescode.html)."""
_ADVICE["SQLITE_LOCKED"] = _ADVICE["SQLITE_BUSY"]

_NO_TABLES = (
    "has no tomoprobe tables. Let `tomoprobe evaluate --db URL` or `tomoprobe quickstart` "
    "create them."
)

_BUGS = (IntegrityError, DataError, NotSupportedError)


@contextmanager
def reported(engine: Engine) -> Iterator[None]:
    """Turn failures of the database into StorageError; anything else is a bug and passes."""
    try:
        yield
    except DatabaseError as error:
        advice = None if isinstance(error, _BUGS) else _advice(error)
        if advice is None:
            raise
        url = engine.url.render_as_string(hide_password=True)
        raise StorageError(f"The database {url} {advice}") from error


def _advice(error: DatabaseError) -> str | None:
    cause = error.orig
    said = str(cause).strip()
    if isinstance(cause, SqliteError):
        if "no such table" in said:
            return _NO_TABLES
        # extended codes are primary codes with a suffix, e.g. SQLITE_IOERR_WRITE
        code = getattr(cause, "sqlite_errorname", "")
        for primary, advice in _ADVICE.items():
            if code == primary or code.startswith(f"{primary}_"):
                return advice
        return None
    if isinstance(error, ProgrammingError):
        missing = getattr(cause, "sqlstate", None) == "42P01"  # PostgreSQL: undefined_table
        return _NO_TABLES if missing else None
    return f"cannot be used: {said}. Check that the server runs and the URL is right."
