"""After the runs: recompute and rescore what is stored, and serve it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..benchmark import evaluate as spine
from ..benchmark import probes as protocols
from ..benchmark.budgets import budget_of, changes_of
from ..benchmark.predictions import from_parquet
from ..benchmark.studies import AnyProbe, on_request
from ..benchmark.types import Result
from ..leaderboard import db as database
from ..leaderboard.settings import Current, Settings
from ..leaderboard.versions import Versions
from ..tasks import get as get_task
from ..tasks import load_file, suites
from ..tasks import names as task_names
from . import rescoring

if TYPE_CHECKING:
    from .session import Session


class Recomputed(NamedTuple):
    """A published number beside the one its predictions give now."""

    stored: Result
    again: Result | None
    """None: no predictions are stored for it."""
    superseded: bool = False
    """Made at an older version: what is computed from predictions may have changed since."""

    @property
    def equal(self) -> bool:
        """Equal to the last digit: score, interval and spread."""
        return self.again is not None and self._numbers(self.stored) == self._numbers(self.again)

    @staticmethod
    def _numbers(row: Result) -> tuple:
        return row.score, row.low, row.high, row.spread, row.n_test


def recompute(work: Session) -> Iterator[Recomputed]:
    """Every stored row beside its recomputation, but for superseded ones, which are only told."""
    versions = Versions.of(
        database.tasks(work.engine), database.units(work.engine), site_settings()
    )
    again: dict[tuple, Result] = {}
    for unit, parquet in database.predictions(work.engine):
        if not versions.behind(unit.task, unit.task_version, unit.probe, unit.probe_version):
            for row in spine.score(*from_parquet(parquet)).results:
                again[_key(row)] = row
    for stored in database.rows(work.engine):
        superseded = bool(versions.superseded(stored.result))
        yield Recomputed(stored.result, again.get(_key(stored.result)), superseded)


def _key(row: Result) -> tuple:
    return (
        row.model_sha,
        row.task,
        row.task_version,
        row.probe,
        row.probe_version,
        row.metric,
        row.shots,
        row.dataset_sha,
        row.split_sha,
    )


def rescore(work: Session, private: Sequence[str], dry_run: bool) -> Iterator[rescoring.Rescored]:
    """Bring units of older versions up to today's tasks and probes; see ``rescoring``.

    Args:
        work: with the database.
        private: task files.
        dry_run: change nothing.
    """
    known = [get_task(name) for name in task_names()] + [load_file(Path(p)) for p in private]
    cards = {task.card.name: task.card for task in known}
    probes = {name: protocols.get(name) for name in protocols.names()}
    return rescoring.rescore(work.engine, cards, probes, dry_run)


def check_database(url: str) -> None:
    """Connect and migrate once.

    Raises:
        StorageError: the database cannot be used.
    """
    engine = database.connect(url)
    try:
        database.migrate(engine)
    finally:
        engine.dispose()


def serve(url: str, host: str, port: int) -> None:
    """Serve the site until stopped; the rest of its settings are of the environment.

    Raises:
        ConfigurationError: a variable of the environment cannot be used.
        StorageError: the database cannot be used.
    """
    from . import site

    site.serve(url, host, port, site_settings())


def site_settings() -> Settings:
    """What the site is told of this release: it sees neither the tasks nor the probes."""
    cards = [get_task(name).card for name in task_names()]
    known = [protocols.get(name) for name in protocols.names()]
    return Settings(
        suites=suites.SUITES,
        tasks={card.name: Current(card.version, card.changes) for card in cards},
        probes={probe.name: _current(probe) for probe in known},
    )


def _current(probe: AnyProbe) -> Current:
    return Current(
        probe.version,
        changes_of(probe),
        budget_of(probe),
        metric=getattr(probe, "metric", ""),
        kinds=probe.kinds,
        standard=tuple(k for k in probe.kinds if protocols.STANDARD[k] == probe.name),
        on_request=on_request(probe),
        title=probe.title,
        cost=getattr(probe, "cost", ""),
    )
