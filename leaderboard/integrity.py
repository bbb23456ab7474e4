"""What is wrong in a database that can be opened."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import StorageError
from ..benchmark.predictions import from_parquet
from .backup import batches, page_faults, snapshot
from .intake_records import ACTIVE
from .intake_tables import JOBS, METADATA, SUBMISSIONS
from .opening import newest, revision_of
from .records import Unit
from .storage_errors import reported
from .tables import PREDICTIONS, RESULTS


@dataclass(frozen=True)
class Checked:
    """A database as it was found."""

    revision: str
    newest: str
    """Revision of this release; another one is brought up by ``migrate``."""
    counts: Mapping[str, int]
    """Rows by table."""
    faults: tuple[str, ...]
    """One sentence each; empty: all is well."""


def check(engine: Engine) -> Checked:
    """Read everything once, in one state of the database, and say what is wrong.

    Damaged pages (SQLite), rows that refer to nothing, jobs that nobody would ever do, units
    without results, predictions that cannot be read or are those of another unit.

    Raises:
        StorageError: the database cannot be read, or has no tables of tomoprobe.
    """
    with snapshot(engine) as connection, reported(engine):
        found = revision_of(connection)
        if found is None:
            raise StorageError("There are no tomoprobe tables. `tomoprobe db upgrade` makes them.")
        # from damaged pages nothing else can be read for sure
        faults = page_faults(connection) if engine.dialect.name == "sqlite" else []
        counts = {}
        if not faults:
            counts = _counts(connection)
            faults = [
                *_orphans(connection, set(counts)),
                *_jobs(connection, set(counts)),
                *_units(engine, connection),
            ]
    return Checked(found, newest(), counts, tuple(faults))


def _counts(connection: Connection) -> dict[str, int]:
    inspector = sa.inspect(connection)
    return {
        table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
        for table in METADATA.sorted_tables
        if inspector.has_table(table.name)  # an older revision has fewer
    }


def _orphans(connection: Connection, tables: set[str]) -> Iterator[str]:
    for table in METADATA.sorted_tables:
        for reference in table.foreign_key_constraints if table.name in tables else ():
            other = reference.referred_table
            pairs = [(key.parent, key.column) for key in reference.elements]
            query = (
                sa.select(sa.func.count())
                .select_from(table.outerjoin(other, sa.and_(*(a == b for a, b in pairs))))
                .where(pairs[0][1].is_(None), *(a.is_not(None) for a, _ in pairs))
            )
            count = connection.scalar(query)
            if count:
                yield f"{table.name}: {count} rows refer to nothing in {other.name}."


def _jobs(connection: Connection, tables: set[str]) -> Iterator[str]:
    """Submissions and jobs that would wait for ever; not bound by references in the tables."""
    if not {JOBS.name, SUBMISSIONS.name} <= tables:
        return
    jobs = connection.execute(
        sa.select(JOBS.c.id, JOBS.c.submission_id, JOBS.c.state, JOBS.c.depends_on).order_by(
            JOBS.c.id
        )
    ).all()
    states = {job.id: job.state for job in jobs}
    open_jobs = {job.submission_id for job in jobs if job.state in ("waiting", "running")}
    for job in jobs:
        before = "done" if job.depends_on is None else states.get(job.depends_on)
        if job.state == "waiting" and before in (None, "failed", "cancelled"):
            yield f"jobs: {job.id} waits for job {job.depends_on}, which will never be done."
    active = sa.select(SUBMISSIONS.c.id).where(SUBMISSIONS.c.state.in_(ACTIVE))
    for id in sorted(set(connection.scalars(active)) - open_jobs):
        yield f"submissions: {id} is not ended, but nothing of it is left to be done."


def _units(engine: Engine, connection: Connection) -> Iterator[str]:
    """Faults of units; each one's predictions are read, a few at a time."""
    key = [RESULTS.c[name] for name in Unit._fields]
    published = {Unit(*row) for row in connection.execute(sa.select(*key).distinct())}
    columns = [PREDICTIONS.c[name] for name in Unit._fields]
    for rows in batches(engine, connection, sa.select(*columns, PREDICTIONS.c.parquet)):
        for row in rows:
            unit = Unit(*(row[name] for name in Unit._fields))
            who = f"{unit.task} v{unit.task_version}, {unit.probe} v{unit.probe_version}, model "
            who += unit.model_sha[:12]
            if unit not in published:
                yield f"{who}: predictions without results."
            fault = _fault(unit, row["parquet"])
            if fault:
                yield f"{who}: {fault}"


def _fault(unit: Unit, parquet: bytes) -> str | None:
    try:
        _, about = from_parquet(parquet)
    except (StorageError, OSError) as error:  # OSError: pyarrow's for a damaged page
        return str(error).strip()
    other = [name for name in Unit._fields if getattr(about, name) != getattr(unit, name)]
    if other:
        return f"the predictions are those of another {', '.join(other)}."
    return None
