"""Where scores, data and features are, and on which device: what every command begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from ..benchmark.cache import FeatureCache
from ..benchmark.errors import (
    StorageError,
    UnknownNameError,
)
from ..benchmark.paths import cache_home
from ..leaderboard import db as database
from ..leaderboard.storage_errors import shown

if TYPE_CHECKING:
    from sqlalchemy import Engine


@dataclass(frozen=True)
class Session:
    """Where the scores go, where the data are, on which device."""

    engine: Engine
    url: str
    data_root: Path | None
    device: str
    cache: FeatureCache

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return shown(make_url(self.url))


def database_url(db: str | None) -> str:
    """The URL; a plain path becomes SQLite, nothing becomes a file in the cache folder.

    Raises:
        StorageError: that folder cannot be made.
    """
    if db is None:
        home = cache_home()
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The folder {home} cannot be made: {error.strerror}. Point TOMOPROBE_HOME to one "
                "that can be written, or name a database with --db."
            ) from error
        return f"sqlite:///{home / 'tomoprobe.db'}"
    return db if "://" in db else f"sqlite:///{Path(db).absolute()}"


def existing_database(db: str | None) -> str:
    """The URL of a database that is there: what only reads should not make an empty one.

    Raises:
        StorageError: there is no such file.
    """
    url = database_url(db)
    path = make_url(url).database if url.startswith("sqlite") else None
    if path is not None and not Path(path).exists():
        raise StorageError(
            f"There is no database {path}. 'tomoprobe quickstart' or 'tomoprobe evaluate' makes "
            "one; --db names another."
        )
    return url


def open_session(db: str | None, data_root: Path | None, device: str) -> Session:
    """Connect, migrate, and find the device.

    Raises:
        StorageError: the database cannot be used.
        UnknownNameError: no such device.
    """
    url = database_url(db)
    engine = database.connect(url)
    database.migrate(engine)
    return Session(
        engine, url, data_root, resolve_device(device), FeatureCache(cache_home() / "features")
    )


def resolve_device(device: str) -> str:
    """``auto`` to the GPU where there is one.

    Raises:
        UnknownNameError: not a device, or not one of this machine.
    """
    import torch

    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device == "auto":
        return "cpu" if len(available) == 1 else "cuda:0"
    if device == "cuda" and len(available) > 1:
        return "cuda:0"
    if device not in available:
        raise UnknownNameError.of("device of this machine", device, ["auto", *available])
    return device
