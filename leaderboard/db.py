"""The tables and the queries: the only SQL of the site.

Rows are added, never edited. A unit (one model, task and probe on one state of the data) is
written in one transaction: a killed run loses at most the unit in hand.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from math import isfinite
from typing import Any, cast, get_args

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import StorageError, UnknownNameError
from ..benchmark.types import Result
from .accounts import audit
from .clock import today
from .hiding import hiding, last_change, public, withheld
from .opening import connect, migrate, migrate_to, newest, revision, writing
from .records import Json, Origin, Pending, StoredModel, StoredRow, StoredTask, Timing, Unit
from .storage_errors import reported
from .tables import MODELS, PENDING, PREDICTIONS, RESULTS, TASKS

__all__ = [
    "add",
    "anonymous",
    "connect",
    "is_done",
    "migrate",
    "migrate_to",
    "model",
    "models",
    "newest",
    "parquet",
    "pending",
    "predictions",
    "public",
    "queue",
    "revision",
    "rows",
    "self_run_units",
    "state",
    "task",
    "tasks",
    "timings",
    "units",
]

# --- writing -----------------------------------------------------------------------------------

_MEANING = ("kind", "metric", "classes", "unit", "field_of_view_mm")
"""Fields of a task's card without which two scores are not of one kind."""


def add(
    engine: Engine,
    *,
    model_sha: str,
    model_card: Json,
    manifest: Json,
    task_card: Json,
    results: Sequence[Result],
    parquet: bytes,
    flags: Sequence[Sequence[str]],
    added: datetime | None = None,
    origin: Origin = "local",
    unsafe: bool = False,
    also: Callable[[Connection], None] | None = None,
) -> bool:
    """Store one unit in one transaction; a unit that is there is left as it is.

    Unless it is trusted less: what the submitter computed gives way to what was computed here,
    and what was made without isolation to what was made with it. The audit keeps the old scores.

    Args:
        engine: of a migrated database.
        model_sha: of the model that made all ``results``.
        model_card: kept when the model is new.
        manifest: kept when the model is new.
        task_card: of the task version of all ``results``; kept when that version is new.
        results: every number of the unit: one per metric, shots and seed.
        parquet: per-case predictions from which the numbers can be recomputed.
        flags: warnings, in the order of ``results``.
        added: now, unless given.
        origin: who computed it.
        unsafe: whether the model ran without isolation.
        also: done in the same transaction, whether the unit is new or not; where it raises,
            nothing is stored.

    Returns:
        Whether anything was added.

    Raises:
        StorageError: the database cannot be written, or holds another card of that task version.
        ValueError: the results are not of one unit, or hold a number that is not finite.
    """
    unit = _unit_of(results)
    if (model_sha, task_card["name"], task_card["version"]) != unit[:3]:
        raise ValueError(f"Cards of {model_sha}, {task_card['name']} with results of {unit}.")
    if origin not in get_args(Origin):
        raise ValueError(f"A row is of {', '.join(get_args(Origin))}, not of '{origin}'.")
    stamp = _stamp(added)
    with reported(engine), writing(engine) as connection:
        ids: list[Json] = [{}] * len(results)
        if _has(connection, unit):
            if connection.dialect.name == "sqlite":  # it gives ids of deleted last rows once more
                last = connection.scalar(sa.select(sa.func.max(RESULTS.c.id))) or 0
                ids = [{"id": last + k} for k in range(1, len(results) + 1)]
            if not _give_way(connection, unit, origin, unsafe):
                if also is not None:
                    also(connection)
                return False
        _add_model(connection, model_sha, model_card, manifest, stamp, origin)
        _add_task(connection, task_card, stamp)
        connection.execute(
            sa.insert(PREDICTIONS).values(**unit._asdict(), parquet=parquet, added=stamp)
        )
        connection.execute(
            sa.insert(RESULTS),
            [
                {
                    **result.as_dict(),
                    "seed": None if result.seed is None else str(result.seed),
                    "calibrated": "uncalibrated" not in marks,
                    "flags": list(marks),
                    "added": stamp,
                    "origin": origin,
                    "unsafe": unsafe,
                    **id,
                }
                for result, marks, id in zip(results, flags, ids, strict=True)
            ],
        )
        if origin != "self-run" and not any(result.subset for result in results):
            question = {name: getattr(unit, name) for name in _QUESTION}
            connection.execute(sa.delete(PENDING).where(*_equal(PENDING, question)))
        if also is not None:
            also(connection)
    return True


_QUESTION = ("model_sha", "task", "task_version", "probe", "probe_version")
"""A unit without the state of the data: what waits is done on whatever state there is then."""


def queue(engine: Engine, units: Sequence[Pending]) -> int:
    """Note what waits for features; what waits already, or is done, is left as it is.

    Args:
        engine: of a migrated database.
        units: of models that are stored.

    Returns:
        How many were added.

    Raises:
        StorageError: the database cannot be written.
        UnknownNameError: a model is not stored; then nothing is added.
    """
    stamp = _stamp(None)
    count = 0
    with reported(engine), writing(engine) as connection:
        known = set(connection.scalars(sa.select(MODELS.c.model_sha)))
        for unit in units:
            if unit.model_sha not in known:
                raise _unknown_model(unit.model_sha)
            key = {name: getattr(unit, name) for name in _QUESTION}
            waits = sa.exists().where(*_equal(PENDING, key))
            # an incomplete copy is no answer to what was asked
            done = sa.exists().where(
                *_equal(RESULTS, key),
                RESULTS.c.subset.is_(False),
                RESULTS.c.origin != "self-run",
            )
            if not connection.scalar(sa.select(sa.or_(waits, done))):
                values = {**vars(unit), "added": unit.added or stamp}
                connection.execute(sa.insert(PENDING).values(**values))
                count += 1
    return count


def _trust(origin: str, unsafe: bool) -> int:
    return 0 if origin == "self-run" else 1 if unsafe else 2


def _give_way(connection: Connection, unit: Unit, origin: str, unsafe: bool) -> bool:
    """Remove a stored unit that is trusted less than what comes; whether it was."""
    where = _equal(RESULTS, unit._asdict())
    stored = connection.execute(sa.select(RESULTS).where(*where)).mappings().all()
    if not stored or _trust(stored[0]["origin"], stored[0]["unsafe"]) >= _trust(origin, unsafe):
        return False
    kept = ("metric", "shots", "seed", "score", "low", "high", "origin", "unsafe", "added")
    audit(
        connection,
        "platform",
        "unit-replaced",
        unit.model_sha,
        unit=unit._asdict(),
        rows=[{name: row[name] for name in kept} for row in stored],
    )
    connection.execute(sa.delete(RESULTS).where(*where))
    connection.execute(sa.delete(PREDICTIONS).where(*_equal(PREDICTIONS, unit._asdict())))
    return True


def _stamp(moment: datetime | None) -> str:
    return (moment or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _unit_of(results: Sequence[Result]) -> Unit:
    units = {Unit(*(getattr(r, name) for name in Unit._fields)) for r in results}
    if len(units) != 1:
        raise ValueError(f"Results of exactly one unit are added at a time, not of {len(units)}.")
    for result in results:
        for name in ("score", "low", "high", "spread", "seconds"):
            value = getattr(result, name)
            if value is not None and not isfinite(value):
                raise ValueError(f"{name} of {result.metric} is {value}; undefined is None.")
    return units.pop()


def _add_model(
    connection: Connection, sha: str, card: Json, manifest: Json, stamp: str, origin: Origin
) -> None:
    if connection.scalar(sa.select(sa.exists().where(MODELS.c.model_sha == sha))):
        computed_here = sa.exists().where(
            RESULTS.c.model_sha == sha, RESULTS.c.origin != "self-run"
        )
        if origin != "self-run" and not connection.scalar(sa.select(computed_here)):
            # what was claimed with predictions gives way to what came with the weights
            values = {"name": card["name"], "card": card, "manifest": manifest}
            connection.execute(sa.update(MODELS).where(MODELS.c.model_sha == sha).values(**values))
            audit(connection, "platform", "card-replaced", sha)
        return
    connection.execute(
        sa.insert(MODELS).values(
            model_sha=sha, name=card["name"], card=card, manifest=manifest, added=stamp
        )
    )


def _add_task(connection: Connection, card: Json, stamp: str) -> None:
    name, version = card["name"], card["version"]
    stored = connection.scalar(
        sa.select(TASKS.c.card).where(TASKS.c.name == name, TASKS.c.version == version)
    )
    if stored is None:
        connection.execute(
            sa.insert(TASKS).values(name=name, version=version, card=card, added=stamp)
        )
        return
    _check_meaning(stored, card)


def check_card(engine: Engine, card: Json) -> None:
    """Refuse a task's card that contradicts the stored one of the same version.

    Raises:
        StorageError: it does; says in which fields.
    """
    query = sa.select(TASKS.c.card).where(
        TASKS.c.name == card["name"], TASKS.c.version == card["version"]
    )
    with reported(engine), engine.connect() as connection:
        stored = connection.scalar(query)
    if stored is not None:
        _check_meaning(stored, card)


def _check_meaning(stored: Json, card: Json) -> None:
    name, version = card["name"], card["version"]
    changed = [f for f in _MEANING if _as_stored(stored.get(f)) != _as_stored(card.get(f))]
    if changed:
        raise StorageError(
            f"Version {version} of task '{name}' is stored with another {', '.join(changed)}, so "
            "the scores cannot stand side by side. Raise the version in the task's card."
        )


def _as_stored(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- reading -----------------------------------------------------------------------------------


# What is returned in order is sorted here: PostgreSQL would sort texts by the rules of a language.


def _equal(table: sa.Table, values: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in values.items()]


def _has(connection: Connection, unit: Unit) -> bool:
    there = sa.exists().where(*_equal(PREDICTIONS, unit._asdict()))
    return bool(connection.scalar(sa.select(there)))


def is_done(
    engine: Engine,
    *,
    model_sha: str,
    task: str,
    task_version: int,
    probe: str,
    probe_version: int,
    dataset_sha: str,
    split_sha: str,
) -> bool:
    """Whether this unit is stored, and evaluating it again would replace nothing: see ``add``."""
    unit = Unit(model_sha, task, task_version, probe, probe_version, dataset_sha, split_sha)
    there = sa.exists().where(
        *_equal(RESULTS, unit._asdict()),
        RESULTS.c.origin != "self-run",
        RESULTS.c.unsafe.is_(False),
    )
    with reported(engine), engine.connect() as connection:
        return bool(connection.scalar(sa.select(there)))


def units(engine: Engine) -> list[Unit]:
    """Every unit that is stored, without its predictions, sorted."""
    columns = [PREDICTIONS.c[name] for name in Unit._fields]
    with reported(engine), engine.connect() as connection:
        hidden = hiding(connection).models
        found = (Unit(*row) for row in connection.execute(sa.select(*columns)))
        return sorted(unit for unit in found if unit.model_sha not in hidden)


def self_run_units(engine: Engine) -> frozenset[Unit]:
    """Units that their submitters computed."""
    key = [RESULTS.c[name] for name in Unit._fields]
    query = sa.select(*key).where(RESULTS.c.origin == "self-run").distinct()
    with reported(engine), engine.connect() as connection:
        return frozenset(Unit(*row) for row in connection.execute(query))


def timings(engine: Engine) -> list[Timing]:
    """What every unit took that was computed here on complete data, sorted."""
    key = [RESULTS.c[name] for name in (*Unit._fields, "device", "seconds")]
    query = (
        sa.select(*key)
        .where(RESULTS.c.origin != "self-run", RESULTS.c.subset.is_(False))
        .distinct()
    )
    with reported(engine), engine.connect() as connection:
        hidden = hiding(connection).models
        return sorted(
            Timing(*(found[name] for name in Timing._fields))
            for found in connection.execute(query).mappings()
            if found["model_sha"] not in hidden
        )


def pending(engine: Engine) -> list[Pending]:
    """What waits for features, oldest first."""
    with reported(engine), engine.connect() as connection:
        hidden = hiding(connection).models
        stored = (Pending(**row) for row in connection.execute(sa.select(PENDING)).mappings())
        found = [unit for unit in stored if unit.model_sha not in hidden]
    return sorted(found, key=lambda p: (p.added, *(getattr(p, name) for name in _QUESTION)))


_RESULT_FIELDS = tuple(field.name for field in fields(Result))


def rows(
    engine: Engine,
    tasks: Sequence[str] | None = None,
    probe: str | None = None,
    models: Sequence[str] | None = None,
    metric: str | Sequence[str] | None = None,
    after: int = 0,
    limit: int | None = None,
) -> list[StoredRow]:
    """The published numbers, oldest first; every filter that is None lets everything through.

    Args:
        engine: of a migrated database.
        tasks: names of tasks, all versions.
        probe: name of a probe, all versions.
        models: ``model_sha`` of models.
        metric: one or several names of metrics.
        after: only rows with a larger ``id``.
        limit: at most so many rows.
    """
    query = sa.select(RESULTS).where(RESULTS.c.id > after).order_by(RESULTS.c.id).limit(limit)
    if tasks is not None:
        query = query.where(RESULTS.c.task.in_(tasks))
    if probe is not None:
        query = query.where(RESULTS.c.probe == probe)
    if models is not None:
        query = query.where(RESULTS.c.model_sha.in_(models))
    if metric is not None:
        query = query.where(RESULTS.c.metric.in_([metric] if isinstance(metric, str) else metric))
    with reported(engine), engine.connect() as connection:
        hides = hiding(connection)
        if hides.models:
            query = query.where(RESULTS.c.model_sha.not_in(hides.models))
        return [hides.row(_row(found)) for found in connection.execute(query).mappings()]


def _row(found: sa.RowMapping) -> StoredRow:
    values = {name: found[name] for name in _RESULT_FIELDS}
    seed = found["seed"]
    values["seed"] = int(seed) if seed not in (None, "all") else seed
    return StoredRow(
        found["id"],
        Result(**cast("Any", values)),
        found["calibrated"],
        tuple(found["flags"]),
        found["added"],
        found["origin"],
        found["unsafe"],
    )


def models(engine: Engine) -> list[StoredModel]:
    """Every model, by name."""
    with reported(engine), engine.connect() as connection:
        hides = hiding(connection)
        stored = (StoredModel(**row) for row in connection.execute(sa.select(MODELS)).mappings())
        found = [hides.model(m) for m in stored if m.model_sha not in hides.models]
    return sorted(found, key=lambda model: (model.name, model.model_sha))


def anonymous(engine: Engine) -> frozenset[str]:
    """``model_sha`` of the models whose name the public may not see."""
    with reported(engine), engine.connect() as connection:
        return withheld(connection).anonymous


def model(engine: Engine, sha: str) -> StoredModel:
    """The model of that identity.

    Raises:
        UnknownNameError: there is none.
    """
    if "\x00" in sha:  # PostgreSQL refuses to look for that
        raise _unknown_model(sha)
    query = sa.select(MODELS).where(MODELS.c.model_sha == sha)
    with reported(engine), engine.connect() as connection:
        hides = hiding(connection)
        found = connection.execute(query).mappings().first()
    if found is None or sha in hides.models:
        raise _unknown_model(sha)
    return hides.model(StoredModel(**found))


def _unknown_model(sha: str) -> UnknownNameError:
    return UnknownNameError(
        f"No model has the identity '{sha}'. Give the whole model_sha of a stored model."
    )


def tasks(engine: Engine) -> list[StoredTask]:
    """Every version of every task, by name and version."""
    with reported(engine), engine.connect() as connection:
        found = [StoredTask(**row) for row in connection.execute(sa.select(TASKS)).mappings()]
    return sorted(found, key=lambda task: (task.name, task.version))


def task(engine: Engine, name: str, version: int | None = None) -> StoredTask:
    """One version of a task; the newest, where none is named.

    Raises:
        UnknownNameError: there is no such task or version.
    """
    stored = tasks(engine)
    versions = {t.version: t for t in stored if t.name == name}
    if not versions:
        raise UnknownNameError.of("task", name, {t.name for t in stored})
    if version is None:
        version = max(versions)
    if version not in versions:
        known = ", ".join(map(str, sorted(versions)))
        raise UnknownNameError(f"Task '{name}' has no version {version}. Known: {known}.")
    return versions[version]


def predictions(
    engine: Engine, tasks: Sequence[str] | None = None, models: Sequence[str] | None = None
) -> Iterator[tuple[Unit, bytes]]:
    """Per-case predictions as Parquet, unit by unit; each is read only when it is asked for."""
    for unit in units(engine):
        if tasks is not None and unit.task not in tasks:
            continue
        if models is not None and unit.model_sha not in models:
            continue
        yield unit, parquet(engine, unit)


def parquet(engine: Engine, unit: Unit) -> bytes:
    """The per-case predictions of one stored unit.

    Raises:
        UnknownNameError: it is not stored.
    """
    query = sa.select(PREDICTIONS.c.parquet).where(*_equal(PREDICTIONS, unit._asdict()))
    with reported(engine), engine.connect() as connection:
        hidden = unit.model_sha in hiding(connection).models
        found = None if hidden else connection.scalar(query)
    if found is None:
        raise UnknownNameError(f"No predictions are stored of {unit}. Evaluate that model again.")
    return found


def state(engine: Engine) -> tuple[int, int, int, str]:
    """Something that changes with every addition, and with what the public may see.

    Cheap: the last ids are one index look-up each, as ids grow in the order of the commits (see
    ``opening.writing``), and little waits at a time. The date: an embargo ends with a day.
    """
    query = sa.select(
        sa.select(sa.func.coalesce(sa.func.max(RESULTS.c.id), 0)).scalar_subquery(),
        sa.select(sa.func.count()).select_from(PENDING).scalar_subquery(),
    )
    with reported(engine), engine.connect() as connection:
        last, waiting = connection.execute(query).one()
        now = connection.get_execution_options().get("tomoprobe_now")
        return last, waiting, last_change(connection), today(now)
