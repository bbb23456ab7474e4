import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import DatabaseError, IntegrityError

from tomoprobe.benchmark.errors import StorageError, UnknownNameError
from tomoprobe.leaderboard import db
from tomoprobe.leaderboard.opening import writing
from tomoprobe.leaderboard.records import Pending, Unit
from tomoprobe.leaderboard.storage_errors import reported
from tomoprobe.leaderboard.tables import METADATA, MODELS, PREDICTIONS, RESULTS, TASKS

from .board_data import PARQUET, add, fresh, model_card, result, sha, task_card


@pytest.fixture
def engine(url):
    engine = fresh(url)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite(tmp_path):
    engine = fresh(tmp_path)
    yield engine
    engine.dispose()


UNIT = {name: getattr(result(), name) for name in Unit._fields}


# --- what is stored -----------------------------------------------------------------------------


def test_rows_come_back_as_they_were_added(engine):
    rows = [
        result(seed="all"),
        result(metric="brier", score=None, spread=None),
        result(metric="average_precision", shots=4, seed=3, score=0.1 + 0.2),
    ]
    assert add(engine, rows, flags=[("uncalibrated",), ("one class only",), ()])
    found = db.rows(engine)
    assert [row.result for row in found] == rows
    assert [row.flags for row in found] == [("uncalibrated",), ("one class only",), ()]
    assert [row.calibrated for row in found] == [False, True, True]
    assert [row.added for row in found] == ["2026-01-01T00:00:00Z"] * 3


def test_cards_manifest_and_predictions_come_back_as_they_were_added(engine):
    card, encoder = task_card("t"), model_card("a")
    add(engine, [result()], card, encoder, manifest={"weights": {"sha256": "ü"}})
    assert db.task(engine, "t").card == card.as_dict()
    model = db.model(engine, sha("a"))
    assert (model.name, model.card) == ("a", encoder.as_dict())
    assert model.manifest == {"weights": {"sha256": "ü"}}
    assert list(db.predictions(engine)) == [(Unit(**UNIT), PARQUET)]


def test_adding_a_unit_twice_does_nothing(engine):
    assert add(engine, [result()])
    before = (db.rows(engine), db.state(engine))
    assert not add(engine, [result()])
    assert not add(engine, [result(score=0.99), result(metric="brier")])
    assert (db.rows(engine), db.state(engine)) == before


def test_a_second_row_of_one_number_is_refused_though_it_has_no_shots(engine):
    add(engine, [result(shots=None, seed=None)])
    with engine.begin() as connection:
        row = dict(connection.execute(sa.select(RESULTS)).mappings().one())
        del row["id"]
        with pytest.raises(IntegrityError):
            connection.execute(sa.insert(RESULTS).values(**row))


def test_a_number_without_its_predictions_is_refused(engine):
    add(engine, [result()])
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(sa.delete(PREDICTIONS))


@pytest.mark.parametrize("part", Unit._fields)
def test_a_unit_is_done_only_when_every_part_of_its_key_agrees(engine, part):
    assert not db.is_done(engine, **UNIT)
    add(engine, [result()])
    assert db.is_done(engine, **UNIT)
    other = 2 if isinstance(UNIT[part], int) else "other"
    assert not db.is_done(engine, **UNIT | {part: other})


@pytest.mark.parametrize("less", [{"origin": "self-run"}, {"unsafe": True}])
def test_a_unit_that_is_trusted_less_is_done_when_it_was_replaced(engine, less):
    add(engine, [result(score=0.9)], **less)
    assert not db.is_done(engine, **UNIT)
    assert add(engine, [result(score=0.7)])
    assert db.is_done(engine, **UNIT)
    assert [row.result.score for row in db.rows(engine)] == [0.7]


def test_ids_grow_and_the_state_changes_when_the_last_unit_is_replaced(engine):
    add(engine, [result(), result(metric="brier")], origin="self-run")
    before, last = db.state(engine), db.rows(engine)[-1].id
    add(engine, [result(score=0.7)], origin="verified")
    (row,) = db.rows(engine)
    assert row.id > last
    assert db.rows(engine, after=last) == [row]  # so whoever goes on from there hears of it
    assert db.state(engine)[0] > before[0]
    assert db.state(engine)[2] > before[2]
    add(engine, [result("b")])
    assert db.rows(engine)[-1].id > row.id


def test_rows_can_be_asked_for_by_task_probe_model_and_metric(engine):
    add(engine, [result("a", "t"), result("a", "t", metric="brier")])
    add(engine, [result("b", "t", probe="knn")])
    add(engine, [result("a", "u")])
    assert len(db.rows(engine)) == 4
    assert {r.result.model for r in db.rows(engine, probe="knn")} == {"b"}
    assert {r.result.task for r in db.rows(engine, tasks=["u", "none"])} == {"u"}
    assert {r.result.task for r in db.rows(engine, models=[sha("a")])} == {"t", "u"}
    assert len(db.rows(engine, metric="auroc", models=[sha("a")])) == 2
    assert len(db.rows(engine, metric=["auroc", "brier"])) == 4
    assert db.rows(engine, tasks=[]) == []
    first, second = db.rows(engine, limit=2)
    assert [r.id for r in db.rows(engine, after=first.id, limit=1)] == [second.id]


def test_predictions_can_be_asked_for_by_task_and_model(engine):
    for model, task in (("a", "t"), ("a", "u"), ("b", "t")):
        add(engine, [result(model, task)], parquet=f"{model}{task}".encode())
    assert {data for _, data in db.predictions(engine, tasks=["t"])} == {b"at", b"bt"}
    assert [data for _, data in db.predictions(engine, tasks=["t"], models=[sha("b")])] == [b"bt"]


def test_the_newest_version_of_a_task_is_found_and_older_ones_by_number(engine):
    for version in (1, 10, 2):
        rows = [result(task_version=version)]
        add(engine, rows, task_card("t", version=version, title=f"version {version}"))
    assert db.task(engine, "t").card["title"] == "version 10"
    assert db.task(engine, "t", 2).card["title"] == "version 2"
    with pytest.raises(UnknownNameError, match=r"no version 3. Known: 1, 2, 10"):
        db.task(engine, "t", 3)


def test_unknown_names_are_told_apart_from_empty_ones(engine):
    add(engine, [result(task="smoke_lesion")])
    with pytest.raises(UnknownNameError, match="Did you mean 'smoke_lesion'"):
        db.task(engine, "smoke_lession")
    with pytest.raises(UnknownNameError, match="whole model_sha"):
        db.model(engine, sha("a")[:12])


def test_a_card_is_kept_as_first_stored_and_one_that_asks_otherwise_is_refused(engine):
    add(engine, [result("a")], task_card("t"))
    assert add(engine, [result("b")], task_card("t", title="Reworded"))
    assert db.task(engine, "t").card["title"] == "The task t"
    with pytest.raises(StorageError, match=r"another metric.*Raise the version"):
        add(engine, [result("c", metric="brier")], task_card("t", "brier"))
    assert [m.name for m in db.models(engine)] == ["a", "b"]


def test_the_state_changes_with_every_unit(engine):
    states = [db.state(engine)]
    for name in ("a", "b"):
        add(engine, [result(name)])
        states.append(db.state(engine))
    assert len(set(states)) == 3


@pytest.mark.parametrize(
    "rows",
    [
        [result(), result(split_sha="other", metric="brier")],
        [result(score=float("nan"))],
        [result(high=float("inf"))],
    ],
    ids=["two units", "nan", "inf"],
)
def test_rows_that_cannot_be_meant_are_refused(engine, rows):
    with pytest.raises(ValueError, match=r"exactly one unit|undefined is None"):
        add(engine, rows)
    assert db.units(engine) == []


def test_cards_of_something_else_than_the_rows_are_refused(engine):
    with pytest.raises(ValueError, match="with results of"):
        add(engine, [result(task="t")], task_card("u"))


# --- what waits ---------------------------------------------------------------------------------

WAITING = Pending(sha("a"), "t", 2, "linear", 1, "the task was raised to version 2")


def test_what_waits_is_queued_once_and_comes_back(engine):
    add(engine, [result()])
    probe = replace(WAITING, task_version=1, probe_version=2, added="2026-02-01T00:00:00Z")
    assert db.queue(engine, [WAITING, probe, WAITING]) == 2
    assert db.queue(engine, [replace(WAITING, why="another reason")]) == 0
    first, second = db.pending(engine)
    assert first == probe
    assert second == replace(WAITING, added=second.added)
    assert datetime.fromisoformat(second.added) <= datetime.now(UTC)


def test_nothing_is_queued_that_is_done_or_of_an_unknown_model(engine):
    add(engine, [result()])
    assert db.queue(engine, [replace(WAITING, task_version=1)]) == 0
    with pytest.raises(UnknownNameError, match="whole model_sha"):
        db.queue(engine, [WAITING, replace(WAITING, model_sha=sha("b"))])
    assert db.queue(engine, []) == 0
    assert db.pending(engine) == []


def test_a_stored_unit_waits_no_longer(engine):
    add(engine, [result()])
    others = [replace(WAITING, **{part: other}) for part, other in OTHER_PARTS.items()]
    db.queue(engine, [WAITING, *others])
    assert len(db.pending(engine)) == 1 + len(others)
    with pytest.raises(ValueError, match="undefined is None"):
        add(engine, [result(task_version=2, score=float("nan"))], task_card("t", version=2))
    assert len(db.pending(engine)) == 1 + len(others)
    add(engine, [result(task_version=2)], task_card("t", version=2))
    assert {replace(p, added="") for p in db.pending(engine)} == set(others)


OTHER_PARTS = {"task": "u", "task_version": 3, "probe": "knn", "probe_version": 2}


def test_the_state_changes_with_what_waits(engine):
    add(engine, [result()])
    states = [db.state(engine)]
    db.queue(engine, [WAITING])
    states.append(db.state(engine))
    add(engine, [result(task_version=2)], task_card("t", version=2))
    states.append(db.state(engine))
    assert len(set(states)) == 3


# --- tables and migrations ------------------------------------------------------------------------


INDEXES = {
    "sqlite": "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
    "postgresql": "SELECT replace(indexdef, schemaname || '.', '') FROM pg_indexes "
    "WHERE schemaname = current_schema AND tablename <> 'alembic_version'",
}


# SQLAlchemy cannot read an index of expressions back from SQLite: it is compared by its text
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based")
def test_the_migrations_make_the_tables_that_the_queries_use(engine, new_url, kind):
    declared = db.connect(new_url(kind))
    METADATA.create_all(declared)
    with engine.connect() as connection, declared.connect() as other:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        indexes = [set(c.scalars(sa.text(INDEXES[kind]))) for c in (connection, other)]
    declared.dispose()
    assert indexes[0] == indexes[1]
    assert any("coalesce(shots" in index.lower() for index in indexes[0])


def test_migrating_again_changes_nothing(engine):
    add(engine, [result()])
    db.migrate(engine)
    assert len(db.rows(engine)) == 1


def test_rows_survive_every_migration_up_and_down(url):
    engine = db.connect(url)
    db.migrate_to(engine, "0001")
    fill_at_first_revision(engine)
    with pytest.raises(StorageError, match="no tomoprobe tables"):
        db.pending(engine)
    before = contents(engine)
    db.migrate(engine)
    assert db.revision(engine) == db.newest() != "0001"
    assert contents(engine) == before
    assert len(db.rows(engine)) == 3
    assert db.queue(engine, [WAITING]) == 1
    add(engine, [result("c")])

    db.migrate_to(engine, "0001")
    assert db.revision(engine) == "0001"
    db.migrate(engine)
    assert db.pending(engine) == []
    assert [row.result.model for row in db.rows(engine)] == ["a", "a", "b", "c"]
    assert len(list(db.predictions(engine))) == 3

    db.migrate_to(engine, "base")
    assert db.revision(engine) is None
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]
    db.migrate(engine)
    assert add(engine, [result()])
    engine.dispose()


LATER = ("origin", "unsafe")
"""Columns that the first revision did not have."""


def fill_at_first_revision(engine) -> None:
    """Rows as the first release wrote them, which knew of nothing that waits."""
    later = db.connect("sqlite://")
    db.migrate(later)
    add(later, [result("a", shots=5, seed=1), result("a", metric="brier", score=None)])
    add(later, [result("b")], parquet=bytes(range(256)))
    with later.connect() as source, engine.begin() as target:
        for table in (MODELS, TASKS, PREDICTIONS, RESULTS):
            found = source.execute(sa.select(table)).mappings()
            rows = [{k: v for k, v in row.items() if k not in ("id", *LATER)} for row in found]
            target.execute(sa.insert(table), rows)
    later.dispose()


def contents(engine) -> list:
    with engine.connect() as connection:
        return [
            sorted(
                map(
                    repr,
                    connection.execute(sa.select(*(c for c in table.c if c.name not in LATER))),
                )
            )
            for table in (MODELS, TASKS, PREDICTIONS, RESULTS)
        ]


def test_a_migration_that_fails_changes_nothing(engine):
    add(engine, [result()])
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE more (sha VARCHAR REFERENCES models(model_sha))"))
        connection.execute(sa.text("INSERT INTO more VALUES (:sha)"), {"sha": sha("a")})
    before = contents(engine)
    with pytest.raises(DatabaseError):
        db.migrate_to(engine, "base")
    assert db.revision(engine) == db.newest()
    assert contents(engine) == before


def test_a_revision_that_is_none_is_refused(engine):
    with pytest.raises(StorageError, match=r"no revision '9'. Known: base, 0001, 0002, 0003, head"):
        db.migrate_to(engine, "9")


def test_a_database_of_a_newer_release_is_refused(engine):
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    for migrate in (db.migrate, lambda engine: db.migrate_to(engine, "0001")):
        with pytest.raises(StorageError, match=r"9999.*newer tomoprobe.*Update"):
            migrate(engine)


# --- what can go wrong ------------------------------------------------------------------------


def test_a_failure_in_the_middle_stores_nothing(engine):
    with pytest.raises((sa.exc.StatementError, TypeError), match="not JSON serializable"):
        add(engine, [result()], flags=[[object()]])
    assert (db.models(engine), db.tasks(engine), db.units(engine)) == ([], [], [])


def run(url: str, program: str) -> subprocess.Popen:
    head = (
        "import os, signal, sys\n"
        "from sqlalchemy import event\n"
        "from tomoprobe.leaderboard import db\n"
        "from tests.board_data import *\n"
        "url = sys.argv[1]\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + program, url],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_run_killed_while_writing_loses_only_the_unit_in_hand(url):
    killed = run(
        url,
        "engine = fresh(url)\n"
        "add(engine, [result('a')])\n"
        "@event.listens_for(engine, 'after_cursor_execute')\n"
        "def _(c, cursor, statement, *rest):\n"
        "    if statement.startswith('INSERT INTO results'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "add(engine, [result('b')])\n",
    )
    assert killed.wait(60) == -signal.SIGKILL
    engine = fresh(url)
    assert [row.result.model for row in db.rows(engine)] == ["a"]
    assert [model.name for model in db.models(engine)] == ["a"]
    assert add(engine, [result("b")])
    engine.dispose()


def test_processes_that_open_a_new_database_together_store_every_unit_once(url):
    program = (
        "engine = fresh(url)\n"
        "for k in range(12): add(engine, [result(f'm{k}'), result(f'm{k}', metric='brier')])\n"
    )
    writers = [run(url, program) for _ in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    engine = db.connect(url)
    assert len(db.units(engine)) == 12
    assert len(db.rows(engine)) == 24
    engine.dispose()


def test_ids_grow_in_the_order_of_the_commits(engine, url):
    """Else a reader who has read up to an id would miss a smaller one that comes later."""
    other = db.connect(url)
    with writing(engine) as first:
        thread = threading.Thread(target=add, args=(other, [result("b")]))
        thread.start()
        time.sleep(0.2)  # the other one has begun and waits
        row = {"model_sha": sha("a"), "name": "a", "card": {}, "manifest": {}, "added": ""}
        first.execute(sa.insert(MODELS).values(**row))
        assert db.rows(engine) == []
    thread.join()
    other.dispose()
    assert len(db.rows(engine)) == 1
    assert len(db.models(engine)) == 2


def test_readers_do_not_wait_for_a_writer(engine, url):
    add(engine, [result()])
    reader = db.connect(url, timeout_s=0)
    with writing(engine) as writer:
        writer.execute(sa.update(MODELS).values(name="not yet"))
        assert len(db.rows(reader)) == 1
        assert [model.name for model in db.models(reader)] == ["a"]
    reader.dispose()


def test_a_locked_database_says_so(engine, url):
    impatient = db.connect(url, timeout_s=0.05)
    with writing(engine), pytest.raises(StorageError, match="is locked: another process"):
        add(impatient, [result()])
    impatient.dispose()
    assert add(engine, [result()])


def test_a_read_only_database_can_be_read_and_says_why_it_cannot_be_written(sqlite, tmp_path):
    add(sqlite, [result("a")])
    read_only = db.connect(f"sqlite:///file:{tmp_path / 'board.db'}?mode=ro&uri=true")
    db.migrate(read_only)
    assert len(db.rows(read_only)) == 1
    with pytest.raises(StorageError, match="is read-only"):
        add(read_only, [result("b")])
    read_only.dispose()


def test_a_full_disk_says_so_and_stores_nothing(sqlite, tmp_path):
    full = db.connect(f"sqlite:///{tmp_path / 'board.db'}")

    @sa.event.listens_for(full, "connect")
    def _(connection, _record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StorageError, match="disk is full"):
        add(full, [result()], parquet=b"x" * 100_000)
    full.dispose()
    assert db.units(sqlite) == []
    assert db.models(sqlite) == []


def test_a_file_that_is_no_database_says_so(tmp_path):
    (tmp_path / "board.db").write_bytes(b"PK\x03\x04" * 1000)
    with pytest.raises(StorageError, match="is not a SQLite database"):
        fresh(tmp_path)


def test_a_missing_folder_says_so(tmp_path):
    with pytest.raises(StorageError, match="folder has to exist"):
        fresh(tmp_path / "nowhere")


def test_a_database_without_tables_says_what_makes_them(url):
    engine = db.connect(url)
    with pytest.raises(StorageError, match="has no tomoprobe tables"):
        db.rows(engine)
    engine.dispose()


def test_a_path_instead_of_a_url_is_told_the_url():
    with pytest.raises(StorageError, match=r"sqlite:///results\.db"):
        db.connect("results.db")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:sec/ret@host:x/board",
        "mysql://me:secret@host/board",
        "mysql://host/board?password=secret",
        "sqlite://me:secret@host/board",
    ],
)
def test_a_url_that_cannot_be_used_is_told_what_is_expected_without_its_password(url):
    with pytest.raises(StorageError, match=r"Expected.*sqlite:///file\.db") as caught:
        db.connect(url)
    assert "sec" not in str(caught.value)


def test_a_bug_in_a_query_is_not_reported_as_a_storage_error(engine):
    with (
        pytest.raises(DatabaseError, match="syntax error"),
        reported(engine),
        engine.connect() as connection,
    ):
        connection.execute(sa.text("SELEC 1"))
