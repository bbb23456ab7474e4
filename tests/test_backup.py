import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import fields
from itertools import count
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from filelock import FileLock
from typer.testing import CliRunner

from tomoprobe.benchmark.errors import StorageError
from tomoprobe.benchmark.predictions import Provenance, to_parquet
from tomoprobe.leaderboard import db
from tomoprobe.leaderboard.backup import backup, restore
from tomoprobe.leaderboard.integrity import check
from tomoprobe.leaderboard.records import Pending
from tomoprobe.leaderboard.tables import METADATA, PREDICTIONS
from tomoprobe.submissions.db_commands import db_app

from .board_data import add, fill, fresh, result, sha

QUEUED = Pending(sha("a"), "t", 2, "linear", 1, "raised", "2026-01-02T00:00:00Z")


def parquet(row) -> bytes:
    """Predictions of one case, as the evaluation of this row would store them."""
    known = {field.name for field in fields(row)} & {field.name for field in fields(Provenance)}
    about = {name: getattr(row, name) for name in known}
    table = pd.DataFrame({"case": ["c"], "patient": ["p"], "target": [1], "p0": [0.25]})
    return to_parquet(table, Provenance(**about, kind="classification", width=8, cv=False))


def add_unit(engine, model: str, **changes: object) -> None:
    rows = [result(model), result(model, metric="brier", score=None, shots=5, seed=2**70)]
    add(engine, rows, **{"parquet": parquet(rows[0])} | changes)


@pytest.fixture
def engine(url):
    """A database with two units and something that waits."""
    engine = fresh(url)
    for model in "ab":
        add_unit(engine, model, manifest={"weights": {"name": "ü\N{SNOWMAN}\n\x01"}})
    db.queue(engine, [QUEUED])
    yield engine
    engine.dispose()


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder / "board 100%.db"


def contents(engine) -> tuple:
    return (
        db.models(engine),
        db.tasks(engine),
        db.rows(engine),
        sorted(db.predictions(engine)),
        db.pending(engine),
    )


def is_untouched(engine) -> bool:
    with engine.connect() as connection:
        return sa.inspect(connection).get_table_names() == []


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["sqlite", "postgresql"])
def test_a_backup_restores_everything_into_either_kind(engine, file, new_url, other):
    with engine.begin() as connection:  # a gap in the ids, as a rolled back unit leaves it
        connection.execute(sa.text("UPDATE results SET id = 1000 WHERE id = 4"))
    counts = backup(engine, file)
    board = {"models": 2, "tasks": 1, "predictions": 2, "results": 4, "pending": 1}
    assert {name: n for name, n in counts.items() if n} == board
    target = db.connect(new_url(other))
    assert restore(target, file) == counts
    assert contents(target) == contents(engine)
    assert [row.id for row in db.rows(target)] == [1, 2, 3, 1000]
    assert db.revision(target) == db.newest()
    add_unit(target, "c")
    assert [row.id for row in db.rows(target, after=1000)] == [1001, 1002]
    target.dispose()


def test_a_backup_is_one_file_that_can_be_read_as_a_database(engine, file):
    backup(engine, file)
    assert list(file.parent.iterdir()) == [file]
    # https://www.sqlite.org/fileformat.html: 2 would be a write-ahead log, so two more files
    assert file.read_bytes()[18:20] == b"\x01\x01"
    copy = db.connect(sa.URL.create("sqlite", database=str(file)))
    assert contents(copy) == contents(engine)
    assert check(copy).faults == ()
    copy.dispose()


def test_an_empty_board_can_be_kept_and_restored(url, file, new_url, kind):
    engine, target = fresh(url), fresh(new_url(kind))
    backup(engine, file)
    assert set(restore(target, file).values()) == {0}
    assert add(target, [result()])
    engine.dispose()
    target.dispose()


def test_a_backup_of_an_older_revision_is_brought_up_when_it_is_restored(
    engine, file, new_url, kind
):
    before = contents(engine)
    db.migrate_to(engine, "0001")
    assert "pending" not in backup(engine, file)
    target = fresh(new_url(kind))
    restore(target, file)
    assert db.revision(target) == db.newest()
    assert contents(target) == (*before[:-1], [])
    target.dispose()


def test_a_backup_shows_one_moment_while_others_write(engine, url, file):
    before = contents(engine)
    other = db.connect(url)
    busy = count()

    @sa.event.listens_for(engine, "after_cursor_execute")
    def _(_connection, _cursor, statement, *_rest):
        if any(f"FROM {table}" in statement for table in METADATA.tables):
            add_unit(other, f"later{next(busy)}")

    backup(engine, file)
    sa.event.remove(engine, "after_cursor_execute", _)
    assert len(db.models(engine)) > len(before[0])  # they did write
    copy = db.connect(sa.URL.create("sqlite", database=str(file)))
    assert contents(copy) == before
    copy.dispose()
    other.dispose()


def run(program: str, *arguments: object) -> subprocess.Popen:
    head = (
        "import os, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from sqlalchemy import event\n"
        "from tomoprobe.leaderboard import backup, db\n"
        "engine, file = db.connect(sys.argv[1]), Path(sys.argv[2])\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + program, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_predictions_are_copied_a_few_at_a_time(engine, url, file, new_url, kind):
    megabytes = 48
    for k in range(megabytes):
        add(engine, [result(f"m{k}")], parquet=random.Random(k).randbytes(2**20))
    program = (
        "def peak():\n"  # not of getrusage, which counts the parent's memory before exec
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(status.partition('VmHWM:')[2].split()[0]) // 1024\n"
        "db.units(engine)\n"
        "before = peak()\n"
        "backup.backup(engine, file)\n"
        "backup.restore(db.connect(sys.argv[3]), file)\n"
        "sys.exit(peak() - before)\n"
    )
    process = run(program, url, file, new_url(kind))
    said = process.communicate(timeout=120)[1]
    assert process.returncode < megabytes - 4, said
    assert file.stat().st_size > megabytes * 2**20


# --- what is there is not lost ------------------------------------------------------------------


def test_a_file_is_replaced_only_by_force(engine, file):
    file.write_text("mine")
    with pytest.raises(StorageError, match="--force"):
        backup(engine, file)
    assert file.read_text() == "mine"
    backup(engine, file, force=True)
    assert file.read_bytes().startswith(b"SQLite format 3")


def test_a_database_is_never_its_own_backup(new_url):
    url = new_url("sqlite")
    engine = fresh(url)
    add(engine, [result()])
    path = Path(engine.url.database)
    for copy in (lambda: backup(engine, path, force=True), lambda: restore(engine, path)):
        with pytest.raises(StorageError, match="is the database itself"):
            copy()
    assert len(db.rows(engine)) == 1
    engine.dispose()


def test_a_full_disk_leaves_the_older_backup_and_no_part(engine, url, file):
    backup(engine, file)
    older = file.read_bytes()
    add(engine, [result("big")], parquet=bytes(400_000))
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    if url.startswith("sqlite"):  # its shared memory and log would not fit either
        engine.dispose()
    process = run(
        "from tomoprobe.benchmark.errors import StorageError\n"
        f"{limit}"
        "try:\n    backup.backup(engine, file, force=True)\n"
        "except StorageError as error:\n    sys.exit(f'REPORTED {error}')\n",
        url,
        file,
    )
    said = process.communicate(timeout=60)[1]
    assert said.startswith("REPORTED")
    assert "disk" in said
    assert file.read_bytes() == older
    assert list(file.parent.iterdir()) == [file]


def test_a_killed_backup_leaves_no_file_of_that_name_and_the_next_one_cleans_up(engine, url, file):
    process = run(
        "@event.listens_for(engine, 'after_cursor_execute')\n"
        "def _(c, cursor, statement, *rest):\n"
        "    if 'FROM predictions' in statement: os.kill(os.getpid(), signal.SIGKILL)\n"
        "backup.backup(engine, file)\n",
        url,
        file,
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not file.exists()
    (part,) = file.parent.glob("*.part")
    part.write_bytes(bytes(10_000))  # some of it may have reached the disk
    backup(engine, file)
    assert list(file.parent.iterdir()) == [file]


def test_two_backups_into_one_file_do_not_mix(engine, file):
    with FileLock(f"{file}.part.lock"), pytest.raises(StorageError, match="just now"):
        backup(engine, file)
    backup(engine, file)


def test_a_folder_is_made_and_one_that_cannot_be_says_so(engine, file):
    backup(engine, file.parent / "new" / "board.db")
    with pytest.raises(StorageError, match="folder that can be written"):
        backup(engine, file.parent / "new" / "board.db" / "board.db")


def test_a_database_without_tables_has_nothing_to_keep(url, file):
    engine = db.connect(url)
    with pytest.raises(StorageError, match="no tomoprobe tables"):
        backup(engine, file)
    assert list(file.parent.iterdir()) == []
    engine.dispose()


def test_a_backup_is_not_restored_over_rows(engine, file, new_url, kind):
    backup(engine, file)
    target = fresh(new_url(kind))
    add(target, [result("mine")])
    before = contents(target)
    with pytest.raises(StorageError, match="a backup is restored into a new or empty one"):
        restore(target, file)
    assert contents(target) == before
    target.dispose()


# --- files that cannot be restored --------------------------------------------------------------


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5000])


def no_database(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04" * 1000)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def damaged_page(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096 * 3 : 4096 * 3 + 100] = bytes(100)
    file.write_bytes(data)


def damaged_index(file: Path) -> None:
    """What a restore would not even read."""
    with closing(sqlite3.connect(file)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'results_by_question'"
        page = connection.execute(query).fetchone()[0]
    data = bytearray(file.read_bytes())
    data[4096 * (page - 1) + 8 : 4096 * page] = bytes(4096 - 8)
    file.write_bytes(data)


def sql(*statements: str):
    def change(file: Path) -> None:
        with sqlite3.connect(file) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Path.unlink, "There is no backup"),
        (truncated, "damaged|malformed"),
        (no_database, "not a SQLite database"),
        (empty, "no tomoprobe tables"),
        (damaged_page, "damaged|malformed"),
        (damaged_index, "damaged"),
        (sql("UPDATE alembic_version SET version_num = '9999'"), "9999.*newer tomoprobe.*Update"),
        (sql("DROP TABLE alembic_version"), "no tomoprobe tables"),
        (sql("DELETE FROM models"), "rows that cannot be"),
        (sql("UPDATE models SET card = '{' WHERE name = 'b'"), "damaged"),
        (sql("UPDATE models SET name = CAST(x'ff' AS TEXT)"), "damaged"),
        (sql("DROP TABLE results"), "no tomoprobe tables"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_is_no_good_leaves_the_database_untouched(
    engine, file, new_url, kind, change, said
):
    backup(engine, file)
    change(file)
    target = db.connect(new_url(kind))
    with pytest.raises(StorageError, match=said):
        restore(target, file)
    assert is_untouched(target)
    target.dispose()


def test_whatever_bit_is_flipped_is_restored_or_refused(new_url, file):
    engine = fresh(new_url("sqlite"))
    add_unit(engine, "a")
    backup(engine, file)
    engine.dispose()
    intact, chance = file.read_bytes(), random.Random(0)
    for _ in range(25):
        data = bytearray(intact)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        target = db.connect(new_url("sqlite"))
        try:
            restore(target, file)
        except StorageError:
            assert is_untouched(target)
        target.dispose()


# --- check --------------------------------------------------------------------------------------


def without_references(engine, statement: str) -> None:
    """Change a database behind the back of its foreign keys."""
    other = db.connect(engine.url)
    raw = other.raw_connection()
    sqlite = engine.dialect.name == "sqlite"
    with closing(raw.cursor()) as cursor:
        off = "PRAGMA foreign_keys = OFF" if sqlite else "SET session_replication_role = replica"
        cursor.execute(off)
        cursor.execute(statement)
    raw.commit()
    raw.close()
    other.dispose()


def test_a_good_database_has_no_faults(engine):
    found = check(engine)
    assert found.faults == ()
    assert found.revision == found.newest == db.newest()
    assert found.counts["results"] == 4


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM models WHERE name = 'b'", "predictions: 1 rows refer to nothing in models"),
        ("DELETE FROM models WHERE name = 'a'", "pending: 1 rows refer to nothing in models"),
        ("DELETE FROM tasks", "predictions: 2 rows refer to nothing in tasks"),
        ("DELETE FROM predictions", "results: 4 rows refer to nothing in predictions"),
        ("DELETE FROM results WHERE model = 'a'", "t v1, linear v1, model .*without results"),
    ],
)
def test_rows_that_belong_to_nothing_are_found(engine, statement, said):
    without_references(engine, statement)
    assert any(re.search(said, fault) for fault in check(engine).faults)


def test_predictions_that_cannot_be_read_are_found(engine):
    add_unit(engine, "c", parquet=b"PAR1 predictions")
    (fault,) = check(engine).faults
    assert "cannot be read" in fault
    assert sha("c")[:12] in fault


def test_predictions_with_a_flipped_bit_never_stop_the_check(new_url):
    engine = fresh(new_url("sqlite"))
    add_unit(engine, "a")
    with engine.connect() as connection:
        intact = connection.scalar(sa.select(PREDICTIONS.c.parquet))
    chance = random.Random(0)
    found = 0
    for _ in range(25):
        data = bytearray(intact)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        with engine.begin() as connection:
            connection.execute(sa.update(PREDICTIONS).values(parquet=bytes(data)))
        found += bool(check(engine).faults)
    engine.dispose()
    assert found > 3


def test_predictions_of_another_unit_are_found(engine):
    add_unit(engine, "c", parquet=parquet(result("d", probe="knn")))
    (fault,) = check(engine).faults
    assert "of another model_sha, probe." in fault


def test_damaged_pages_are_found(new_url, file):
    engine = fresh(new_url("sqlite"))
    fill(engine)
    backup(engine, file)
    engine.dispose()
    damaged_page(file)
    copy = db.connect(sa.URL.create("sqlite", database=str(file)))
    assert check(copy).faults
    copy.dispose()


# --- the commands -------------------------------------------------------------------------------


def invoke(*arguments: object) -> tuple[int, str]:
    ran = CliRunner().invoke(db_app, [str(argument) for argument in arguments])
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran.exit_code, ran.output


def test_the_commands_make_check_keep_and_restore_a_database(url, new_url, kind, file):
    assert invoke("upgrade", "--db", url) == (0, f"Revision none -> {db.newest()}.\n")
    assert invoke("upgrade", "--db", url) == (0, f"Revision {db.newest()} already.\n")
    engine = db.connect(url)
    add_unit(engine, "a")
    code, said = invoke("check", "--db", url)
    assert (code, said.splitlines()[-1]) == (0, "No faults.")
    assert "2 results" in said
    assert invoke("backup", file, "--db", url)[0] == 0
    with pytest.raises(StorageError, match="--force"):
        invoke("backup", file, "--db", url)
    assert invoke("backup", file, "--force", "--db", url)[0] == 0
    other = new_url(kind)
    code, said = invoke("restore", file, "--db", other)
    assert (code, "2 results" in said) == (0, True)
    target = db.connect(other)
    assert contents(target) == contents(engine)
    add_unit(target, "b", parquet=b"")
    code, said = invoke("check", "--db", other)
    assert code == 1
    assert "FAULT  t v1" in said
    db.migrate_to(engine, "0001")
    assert "run `tomoprobe db upgrade`" in invoke("check", "--db", url)[1]
    assert invoke("upgrade", "--db", url) == (0, f"Revision 0001 -> {db.newest()}.\n")
    engine.dispose()
    target.dispose()
