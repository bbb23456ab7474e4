"""Fixtures for all tests: a home of their own, the real data where they are, tiny encoders."""

import os

# Before anything imports torch: two workers on two cores, so more threads only wait for one
# another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path

import hypothesis
import pytest

from .postgres import Server

# The same examples in every run, however slow the machine: a flaky check is a bug.
hypothesis.settings.register_profile("tomoprobe", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tomoprobe")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_report_header() -> str:
    names = ("torch", "monai", "scikit-learn", "numpy", "sqlalchemy", "fastapi")
    return "versions: " + ", ".join(f"{name} {version(name)}" for name in names)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """TOMOPROBE_HOME of this run, shared by all workers so that the smoke cohort is made once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "home"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOMOPROBE_HOME", str(folder))
        patch.delenv("TOMOPROBE_DB", raising=False)
        yield folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("TOMOPROBE_DATA", SHARED_DATA))
    if not root.is_dir():
        pytest.skip(f"real data are not at {root}; set TOMOPROBE_DATA")
    return root


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server, started by the first test that asks for it."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Gives the URL of a new database of a kind; ``postgresql`` starts the server."""
    numbers = count()

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / f'board{next(numbers)}.db'}"
        return request.getfixturevalue("postgres").new_url()

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of database, one after the other."""
    return request.param


@pytest.fixture
def url(new_url: Callable[[str], str], kind: str) -> str:
    """The URL of a new database: whatever asks for it runs on both kinds."""
    return new_url(kind)
