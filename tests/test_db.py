import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.schema import CreateIndex, CreateTable

from tomoprobe.benchmark.errors import StorageError, UnknownNameError
from tomoprobe.leaderboard import db
from tomoprobe.leaderboard.records import Unit
from tomoprobe.leaderboard.storage_errors import reported
from tomoprobe.leaderboard.tables import METADATA, PREDICTIONS, RESULTS

from .board_data import PARQUET, add, fresh, model_card, result, sha, task_card


@pytest.fixture
def engine(tmp_path):
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
    assert add(engine, rows, flags={"brier": ["one class only"]}, uncalibrated=["auroc"])
    found = db.rows(engine)
    assert [row.result for row in found] == rows
    assert [row.flags for row in found] == [(), ("one class only",), ()]
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


# --- tables and migrations ------------------------------------------------------------------------


# the unique index holds expressions, which SQLAlchemy cannot read back from SQLite: by its text
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based")
def test_the_migrations_make_the_tables_that_the_queries_use(engine):
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        made = connection.scalar(
            sa.text("SELECT sql FROM sqlite_master WHERE name = 'one_row_per_number'")
        )
    (index,) = (i for i in RESULTS.indexes if i.name == "one_row_per_number")
    assert made == str(CreateIndex(index).compile(dialect=engine.dialect))


def test_migrating_again_changes_nothing(engine):
    add(engine, [result()])
    db.migrate(engine)
    assert len(db.rows(engine)) == 1


def test_the_tables_are_legal_on_postgresql():
    dialect = postgresql.dialect()
    for table in METADATA.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert "CREATE" in str(CreateIndex(index).compile(dialect=dialect))


def test_a_database_of_a_newer_release_is_refused(engine):
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match=r"9999.*newer tomoprobe.*Update"):
        db.migrate(engine)


# --- what can go wrong ------------------------------------------------------------------------


def test_a_failure_in_the_middle_stores_nothing(engine):
    with pytest.raises(sa.exc.StatementError):
        add(engine, [result()], flags={"auroc": [object()]})
    assert (db.models(engine), db.tasks(engine), db.units(engine)) == ([], [], [])


def run(folder: Path, program: str) -> subprocess.Popen:
    head = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from sqlalchemy import event\n"
        "from tomoprobe.leaderboard import db\n"
        "from tests.board_data import *\n"
        "folder = Path(sys.argv[1])\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + program, str(folder)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_run_killed_while_writing_loses_only_the_unit_in_hand(tmp_path):
    killed = run(
        tmp_path,
        "engine = fresh(folder)\n"
        "add(engine, [result('a')])\n"
        "@event.listens_for(engine, 'after_cursor_execute')\n"
        "def _(c, cursor, statement, *rest):\n"
        "    if statement.startswith('INSERT INTO results'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "add(engine, [result('b')])\n",
    )
    assert killed.wait(60) == -signal.SIGKILL
    engine = db.connect(f"sqlite:///{tmp_path / 'board.db'}")
    db.migrate(engine)
    assert [row.result.model for row in db.rows(engine)] == ["a"]
    assert [model.name for model in db.models(engine)] == ["a"]
    assert add(engine, [result("b")])


def test_processes_that_open_a_new_database_together_store_every_unit_once(tmp_path):
    program = (
        "engine = fresh(folder)\n"
        "for k in range(12): add(engine, [result(f'm{k}'), result(f'm{k}', metric='brier')])\n"
    )
    writers = [run(tmp_path, program) for _ in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    engine = db.connect(f"sqlite:///{tmp_path / 'board.db'}")
    assert len(db.units(engine)) == 12
    assert len(db.rows(engine)) == 24


def test_readers_do_not_wait_for_a_writer(engine, tmp_path):
    add(engine, [result()])
    with sqlite3.connect(tmp_path / "board.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        reader = db.connect(f"sqlite:///{tmp_path / 'board.db'}", timeout_s=0)
        assert len(db.rows(reader)) == 1
        reader.dispose()
    other.close()


def test_a_locked_database_says_so(engine, tmp_path):
    with sqlite3.connect(tmp_path / "board.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        impatient = db.connect(f"sqlite:///{tmp_path / 'board.db'}", timeout_s=0.05)
        with pytest.raises(StorageError, match=r"is locked: another process"):
            add(impatient, [result()])
        impatient.dispose()
    other.close()


def test_a_read_only_database_can_be_read_and_says_why_it_cannot_be_written(engine, tmp_path):
    add(engine, [result("a")])
    read_only = db.connect(f"sqlite:///file:{tmp_path / 'board.db'}?mode=ro&uri=true")
    db.migrate(read_only)
    assert len(db.rows(read_only)) == 1
    with pytest.raises(StorageError, match="is read-only"):
        add(read_only, [result("b")])
    read_only.dispose()


def test_a_full_disk_says_so_and_stores_nothing(engine, tmp_path):
    full = db.connect(f"sqlite:///{tmp_path / 'board.db'}")

    @sa.event.listens_for(full, "connect")
    def _(connection, _record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StorageError, match="disk is full"):
        add(full, [result()], parquet=b"x" * 100_000)
    full.dispose()
    assert db.units(engine) == []
    assert db.models(engine) == []


def test_a_file_that_is_no_database_says_so(tmp_path):
    (tmp_path / "board.db").write_bytes(b"PK\x03\x04" * 1000)
    with pytest.raises(StorageError, match="is not a SQLite database"):
        fresh(tmp_path)


def test_a_missing_folder_says_so(tmp_path):
    with pytest.raises(StorageError, match="folder has to exist"):
        fresh(tmp_path / "nowhere")


def test_a_database_without_tables_says_what_makes_them(tmp_path):
    engine = db.connect(f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(StorageError, match="has no tomoprobe tables"):
        db.rows(engine)
    engine.dispose()


def test_a_path_instead_of_a_url_is_told_the_url():
    with pytest.raises(StorageError, match=r"sqlite:///results\.db"):
        db.connect("results.db")


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match="driver 'psycopg' is not installed"):
        db.connect("postgresql+psycopg://host/board")


def test_an_unreachable_server_is_reported_without_its_password():
    engine = db.connect("sqlite:///x.db")
    engine.url = sa.make_url("postgresql://me:secret@host/board")
    with pytest.raises(StorageError, match="connection refused") as caught, reported(engine):
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))
    assert "secret" not in str(caught.value)


def test_a_bug_in_a_query_is_not_reported_as_a_storage_error(engine):
    with (
        pytest.raises(OperationalError, match="syntax error"),
        reported(engine),
        engine.connect() as connection,
    ):
        connection.execute(sa.text("SELEC 1"))
