"""What only PostgreSQL does; tests/test_db.py and tests/test_backup.py run on both databases."""

import socket
import sys

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tomoprobe.benchmark.errors import StorageError
from tomoprobe.leaderboard import db
from tomoprobe.leaderboard.site import create_app
from tomoprobe.leaderboard.storage_errors import reported, shown

from .board_data import LEVELS, REAL_TASKS, Visitor, add, fill, fresh, result, sha


@pytest.fixture
def address(postgres):
    return sa.make_url(postgres.new_url())


@pytest.fixture
def board(address):
    engine = fresh(written(address))
    yield engine
    engine.dispose()


@pytest.fixture
def role(postgres, request):
    """A user of the server, and nothing that it owns or may."""
    name = f"role{abs(hash(request.node.name))}"
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'open sesame'")
    postgres.require_password(name)
    yield name
    postgres.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def written(address: sa.URL) -> str:
    return address.render_as_string(hide_password=False)


def failure(address: sa.URL) -> str:
    """What is said when the database at this address is opened."""
    engine = db.connect(address)
    with pytest.raises(StorageError) as caught:
        db.migrate(engine)
    engine.dispose()
    return str(caught.value)


# --- the same on both ---------------------------------------------------------------------------


def test_every_page_is_the_same_on_both_databases(board, tmp_path):
    file = fresh(tmp_path)
    visitors = []
    for engine in (file, board):
        fill(engine)
        visitors.append(Visitor(create_app(engine)))
    paths = [
        "/",
        "/board.json",
        "/board.csv",
        "/?probe=knn",
        "/healthz",
        "/api/v1/results?limit=500",
        "/api/v1/models",
        "/api/v1/tasks",
        "/api/v1/probes",
        "/probes",
        "/probes/linear",
        *(f"/tasks/{card.name}" for card in REAL_TASKS),
        *(f"/models/{sha(name)}" for name in LEVELS),
    ]
    for path in paths:
        answers = [visitor.get(path) for visitor in visitors]
        assert answers[0].status_code == 200, path
        assert answers[0].text == answers[1].text, path
    file.dispose()


# --- the URL ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_way_to_write_the_url_uses_the_driver_that_is_tested(address, scheme):
    engine = fresh(written(address.set(drivername=scheme)))
    assert engine.driver == "psycopg"
    assert add(engine, [result()])
    engine.dispose()


def test_a_missing_driver_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match=r"'psycopg' is not installed.*tomoprobe\[postgres\]"):
        db.connect("postgresql://host/board")


# --- what can go wrong --------------------------------------------------------------------------


def test_a_wrong_password_says_so_and_is_not_repeated(address, role):
    said = failure(address.set(username=role, password="sesame123"))  # noqa: S106
    assert "password authentication failed" in said
    assert "Check the user and the password" in said
    assert "sesame123" not in said


def test_a_database_that_is_not_there_says_how_to_make_it(address):
    said = failure(address.set(database="nowhere"))
    assert 'database "nowhere" does not exist' in said
    assert "createdb" in said


def test_an_unknown_user_says_so(address):
    assert "createuser" in failure(address.set(username="nobody"))


def test_a_server_that_does_not_run_says_so_soon(unused_port):
    said = failure(sa.make_url(f"postgresql://me:secret@127.0.0.1:{unused_port}/board"))
    assert "refused" in said
    assert "Check that the server runs" in said
    assert "secret" not in said


@pytest.fixture
def unused_port():
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_misspelt_option_of_the_url_says_so(address):
    said = failure(address.update_query_dict({"sslmood": "require"}))
    assert 'invalid connection option "sslmood"' in said


@pytest.mark.parametrize("may_see", [False, True], ids=["no schema", "no right to create"])
def test_a_user_who_may_not_make_tables_is_told(address, role, postgres, may_see):
    if may_see:
        schema = address.query["options"].partition("=")[2]
        postgres.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    said = failure(address.set(username=role, password="open sesame"))  # noqa: S106
    assert "GRANT USAGE, CREATE ON SCHEMA" in said


def test_a_user_who_may_only_read_can_serve_but_not_add(board, address, role):
    add(board, [result("a")])
    with board.begin() as connection:
        schema = connection.scalar(sa.select(sa.func.current_schema()))
        connection.execute(sa.text(f"GRANT USAGE ON SCHEMA {schema} TO {role}"))
        connection.execute(sa.text(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}"))
    reader = fresh(written(address.set(username=role, password="open sesame")))  # noqa: S106
    assert len(db.rows(reader)) == 1
    with pytest.raises(StorageError, match=r"does not permit this.*permission denied"):
        add(reader, [result("b")])
    reader.dispose()


def test_connections_that_the_server_closed_are_opened_again(board, postgres):
    add(board, [result()])
    postgres.disconnect()
    assert len(db.rows(board)) == 1


def test_a_server_that_stops_in_the_middle_loses_only_the_unit_in_hand(board, postgres):
    add(board, [result("a")])

    @sa.event.listens_for(board, "after_cursor_execute")
    def _(_connection, _cursor, statement, *_rest):
        if statement.startswith("INSERT INTO predictions"):
            postgres.disconnect()

    with pytest.raises(StorageError, match=r"terminating connection.*Run the same command again"):
        add(board, [result("b")])
    sa.event.remove(board, "after_cursor_execute", _)
    assert [model.name for model in db.models(board)] == ["a"]
    assert add(board, [result("b")])


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ("53100", "disk is full"),
        ("53300", "max_connections"),
        ("25006", "read-only"),
        ("40P01", "gave way"),
        ("57P03", "Check that the server runs"),
        ("08006", "was lost"),
        ("22P05", "UTF8"),
        ("XX001", "damaged"),
        ("58030", "error of its system"),
    ],
)
def test_what_the_server_says_is_turned_into_advice(board, state, advice):
    with pytest.raises(StorageError, match=advice), reported(board):
        cause = psycopg.errors.lookup(state)("what it says")
        raise DBAPIError.instance("SELECT 1", {}, cause, psycopg.Error, dialect=board.dialect)


def test_passwords_are_hidden_wherever_they_stand():
    url = sa.make_url("postgresql://me:one@host/board?password=two&sslpassword=three&sslmode=on")
    assert shown(url) == "postgresql://me:***@host/board?sslmode=on"


def test_what_is_listed_is_sorted_by_code_point_and_not_by_the_rules_of_a_language(board):
    for name in ("b", "B", "a", "Z", "_a"):
        add(board, [result(name, name)])
    assert [model.name for model in db.models(board)] == ["B", "Z", "_a", "a", "b"]
    assert [task.name for task in db.tasks(board)] == ["B", "Z", "_a", "a", "b"]
    assert db.units(board) == sorted(db.units(board))
