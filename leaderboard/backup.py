"""A whole database in one file, and back: for safety, and from one kind of database to another.

A backup is a SQLite file with the same tables at the same revision as the database it was taken
from, so it can also be read and served as it is.

It holds what the database holds: also accounts, what is withdrawn or anonymous, and the digests of
tokens and sessions (``intake_tables.SECRETS``), never the secrets themselves. Keep it as safe as
the database.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError

from ..benchmark.errors import StorageError
from .intake_tables import METADATA
from .opening import connect, known_revisions, move, revision_of, writing
from .storage_errors import reported, shown

_ROWS = 1000
"""Rows in memory at a time: well under 1 MB of numbers and cards."""

_BLOBS = 2
"""Likewise where a row holds predictions. PostgreSQL's driver keeps several copies of each: with
1 MB a row, a backup was measured to need 50 MB at 8 rows and 20 MB at 2, however many there are."""


# --- backup ------------------------------------------------------------------------------------


def backup(engine: Engine, file: Path, *, force: bool = False) -> dict[str, int]:
    """Copy one consistent state of a database into a file, while others read and write it.

    Args:
        engine: of a database of any revision that this release knows.
        file: written beside and moved, so that there is never half a backup under this name.
        force: replace a file of that name.

    Returns:
        How many rows were copied, by table.

    Raises:
        StorageError: there is such a file already, it cannot be written, the database cannot be
            read, or it has no tables. Then no file is left, and an older one is as it was.
    """
    if _is_file_of(engine, file):
        raise StorageError(f"{file} is the database itself. Name another file for its backup.")
    if file.exists() and not force:
        raise StorageError(f"{file} exists. Name another file, or replace it with --force.")
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{part}.lock", timeout=0):
            try:
                _discard(part)  # of a process that was killed
                counts = _write(engine, part)
                part.replace(file)
                return counts
            finally:
                _discard(part)
                Path(f"{part}.lock").unlink(missing_ok=True)
    except Timeout as error:
        raise StorageError(
            f"Another process is writing {file} just now. Wait for it, or name another file."
        ) from error
    except OSError as error:
        raise StorageError(
            f"{file} cannot be written: {error.strerror}. Name a file in a folder that can be "
            "written."
        ) from error


def _write(engine: Engine, part: Path) -> dict[str, int]:
    made = connect(URL.create("sqlite", database=str(part)))
    event.listen(made, "connect", _for_one_process)
    try:
        with snapshot(engine) as source:
            with reported(engine):
                found = _known_revision(source)
            with reported(made), writing(made) as target:
                move(target, found)
                counts = _copy(engine, source, target, _tables_at(found))
                _verify(engine, source, target, counts)
        with reported(made), made.connect() as connection:
            _check_pages(connection, part)
    finally:
        made.dispose()
    return counts


def _for_one_process(connection: Any, _record: object) -> None:
    """One file without companions, and rows as they are: faults are for ``check`` to find."""
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA foreign_keys = OFF")


def _discard(part: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{part}{suffix}").unlink(missing_ok=True)


# --- restore -----------------------------------------------------------------------------------


def restore(engine: Engine, file: Path) -> dict[str, int]:
    """Fill a database without rows from a backup, in one transaction; ids are kept.

    Args:
        engine: of a database that is new or has empty tables; it ends at the newest revision.
        file: a backup, or any SQLite database of tomoprobe, of this or an older release.

    Returns:
        How many rows were copied, by table.

    Raises:
        StorageError: the file is no backup, is damaged or of a newer release, or the database
            has rows or cannot be written. Then the database is as it was.
    """
    if not file.is_file():
        raise StorageError(f"There is no backup {file}. `tomoprobe db backup` makes one.")
    if _is_file_of(engine, file):
        raise StorageError(f"{file} is the database itself. Name another database with --db.")
    kept = connect(
        URL.create(
            "sqlite",
            database=file.absolute().as_uri(),
            query={"mode": "ro", "uri": "true"},
        )
    )
    try:
        with snapshot(kept) as source:
            with reported(kept):
                found = _known_revision(source)
                _check_pages(source, file)
            with reported(engine), _wrong_rows_named(file), writing(engine) as target:
                tables = _tables_at(found)
                _check_empty(target)
                move(target, found)
                counts = _copy(kept, source, target, tables)
                _continue_ids(target, tables)
                _verify(kept, source, target, counts)
                move(target, "head")
    finally:
        kept.dispose()
    return counts


@contextmanager
def _wrong_rows_named(file: Path) -> Iterator[None]:
    try:
        yield
    except (DataError, IntegrityError) as error:
        raise StorageError(
            f"{file} holds rows that cannot be: {error.orig}. Restore another backup; `tomoprobe "
            f"db check --db {file}` lists what is wrong in this one."
        ) from error


def _check_empty(target: Connection) -> None:
    inspector = sa.inspect(target)
    for table in METADATA.sorted_tables:
        if inspector.has_table(table.name) and target.scalar(
            sa.select(sa.exists(sa.select(sa.literal(1)).select_from(table)))
        ):
            raise StorageError(
                f"The database {shown(target.engine.url)} has rows in its table {table.name}; a "
                "backup is restored into a new or empty one only. Name another with --db."
            )


def _continue_ids(target: Connection, tables: Sequence[sa.TableClause]) -> None:
    """PostgreSQL counts ids in a sequence, which does not see the ids that are given to it."""
    if target.dialect.name != "postgresql":
        return
    for table in tables:
        if "id" in table.c and isinstance(table.c.id.type, sa.Integer):  # others are chosen
            last = target.scalar(sa.select(sa.func.max(table.c.id)))
            if last is not None:
                sequence = sa.func.pg_get_serial_sequence(table.name, "id")
                target.execute(sa.select(sa.func.setval(sequence, last)))


# --- both ways ---------------------------------------------------------------------------------


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one state of the database, whatever others commit meanwhile."""
    with reported(engine):
        connection = engine.connect()
    with closing(connection):
        if engine.dialect.name == "postgresql":  # SQLite reads so anyway
            connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        with reported(engine):
            connection.begin()
        yield connection


def batches(engine: Engine, source: Connection, query: sa.Select) -> Iterator[Sequence[Any]]:
    """The rows of a query, a few at a time, so that memory is bounded."""
    columns = query.selected_columns
    size = _BLOBS if any(isinstance(c.type, sa.LargeBinary) for c in columns) else _ROWS
    with reported(engine):
        try:
            result = source.execute(query, execution_options={"yield_per": size}).mappings()
            yield from result.partitions()
        except ValueError as error:  # of a decoder: letters that are none, or no JSON
            raise StorageError(
                f"The database {shown(engine.url)} holds what it cannot hold: {error}. It is "
                "damaged; restore a backup."
            ) from error


def _tables_at(revision: str) -> list[sa.TableClause]:
    """The tables of a revision, in any database; what is referred to comes first."""
    model = connect("sqlite://")
    try:
        with writing(model) as connection:
            move(connection, revision)
            inspector = sa.inspect(connection)
            return [
                sa.table(name, *(sa.column(c["name"], c["type"]) for c in columns))
                for name, _ in inspector.get_sorted_table_and_fkc_names()
                if name and name != "alembic_version"
                for columns in [inspector.get_columns(name)]
            ]
    finally:
        model.dispose()


def _copy(
    engine: Engine, source: Connection, target: Connection, tables: Sequence[sa.TableClause]
) -> dict[str, int]:
    """Copy all rows; ``engine`` is of ``source``."""
    counts = {}
    for table in tables:
        counts[table.name] = 0
        for rows in batches(engine, source, sa.select(table)):
            target.execute(sa.insert(table), [dict(row) for row in rows])
            counts[table.name] += len(rows)
    return counts


def _verify(engine: Engine, source: Connection, target: Connection, counts: dict[str, int]) -> None:
    for name, copied in counts.items():
        count = sa.select(sa.func.count()).select_from(sa.table(name))
        with reported(engine):
            there = source.scalar(count)
        if not there == copied == target.scalar(count):
            raise StorageError(
                f"Of {there} rows of {name}, {copied} were copied. Nothing was kept; run "
                "`tomoprobe db check` on the database that was read."
            )


def _known_revision(source: Connection) -> str:
    found, url = revision_of(source), shown(source.engine.url)
    if found is None:
        raise StorageError(f"{url} has no tomoprobe tables, so there is nothing to copy.")
    if found not in known_revisions():
        raise StorageError(
            f"{url} has revision {found}, but this release knows only up to "
            f"{known_revisions()[0]}: a newer tomoprobe wrote it. Update tomoprobe."
        )
    return found


def _check_pages(connection: Connection, file: Path) -> None:
    """Refuse a SQLite file with pages that are damaged."""
    faults = page_faults(connection)
    if faults:
        raise StorageError(f"{file} is damaged: {faults[0]}. Use another backup.")


def page_faults(connection: Connection) -> list[str]:
    """What SQLite's own check of a file finds."""
    try:
        said = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    except DatabaseError as error:
        if "malformed" not in str(error.orig):
            raise
        return [str(error.orig)]
    return [text for text in said if text != "ok"]


def _is_file_of(engine: Engine, file: Path) -> bool:
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return False
    own = Path(engine.url.database)
    return file.exists() and own.exists() and file.samefile(own)
