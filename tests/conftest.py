"""Fixtures for all tests: a home of their own, the real data where they are, tiny encoders."""

import os

# Before anything imports torch: two workers on two cores, so more threads only wait for one
# another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest

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
