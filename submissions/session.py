"""What the commands do, without how it is typed or printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import make_url

from ..benchmark import compare, statistics
from ..benchmark import evaluate as spine
from ..benchmark import probes as protocols
from ..benchmark.budgets import budget_of, changes_of
from ..benchmark.cache import FeatureCache
from ..benchmark.errors import (
    DataError,
    ProbeError,
    StorageError,
    TaskFileError,
    TomoprobeError,
    UnknownNameError,
)
from ..benchmark.paths import cache_home
from ..benchmark.predictions import from_parquet
from ..benchmark.types import Probe, Result, Task
from ..leaderboard import db as database
from ..leaderboard.records import StoredRow, Unit
from ..leaderboard.settings import Current, Settings
from ..leaderboard.storage_errors import shown
from ..leaderboard.versions import Versions
from ..tasks import get as get_task
from ..tasks import load_file, suites
from ..tasks import names as task_names
from . import architectures, manifest, rescoring, runner
from .baselines import names as known_baselines
from .baselines import path as manifest_path

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from .load import LoadedEncoder

LoadEncoder = Callable[[str], "LoadedEncoder"]
"""Loads an encoder onto a device; called when its turn has come."""


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


def run_folder(started: datetime) -> Path:
    """Where a run's summary goes unless a folder is named."""
    return cache_home() / "runs" / started.strftime("%Y-%m-%dT%H-%M-%SZ")


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


# --- what to run ---------------------------------------------------------------------------------


def baselines() -> dict[str, LoadEncoder]:
    """Every baseline that needs nothing beyond this package's own requirements, by name."""
    plain = [
        name
        for name in known_baselines()
        if not architectures.constant(manifest.read(manifest_path(name)).architecture.name, "EXTRA")
    ]
    return encoders(plain, None, None)


def encoders(
    specs: Sequence[str], arguments: str | None, weights: Path | None
) -> dict[str, LoadEncoder]:
    """Loaders for what was typed after ``--encoder``, by what was typed.

    Raises:
        TomoprobeError: arguments that are not a JSON object.
        UnknownNameError: a name without a meaning; found now and not when its turn comes.
    """
    from .load import load

    try:
        parsed = json.loads(arguments) if arguments else None
        if not isinstance(parsed, dict | None):
            raise ValueError(f"a {type(parsed).__name__}")
    except ValueError as error:
        raise TomoprobeError(
            f"--arguments is not a JSON object ({error}). Expected e.g. '{{\"width\": 16}}'."
        ) from error
    names = [*known_baselines(), *architectures.names()]
    for spec in specs:
        if not (spec in names or ":" in spec or spec.endswith(".toml")):
            raise UnknownNameError.of("encoder", spec, set(names))

    def loader(spec: str) -> LoadEncoder:
        return lambda device: load(spec, arguments=parsed, weights=weights, device=device)

    return {spec: loader(spec) for spec in specs}


def probes(names: Sequence[str] | None) -> list[Probe]:
    """The probes of these names, or all.

    Raises:
        UnknownNameError: no such probe.
    """
    return [protocols.get(name) for name in names or protocols.names()]


def suite(name: str) -> list[Task]:
    """The tasks of a suite."""
    return [get_task(task) for task in suites.get(name)]


def tasks(names: Sequence[str], suite_name: str | None) -> list[Task]:
    """The tasks that were named, a file being a private one; then those of the suite.

    Raises:
        TaskFileError: none was named.
        UnknownNameError: no such task or suite.
    """
    chosen = [load_file(Path(n)) if n.endswith(".py") else get_task(n) for n in names]
    chosen += suite(suite_name) if suite_name else []
    if not chosen:
        raise TaskFileError(
            "Nothing to evaluate on. Name a task (--task NAME or --task ./my_task.py) or a suite "
            "(--suite NAME); 'tomoprobe tasks' lists them."
        )
    return list({task.card.name: task for task in chosen}.values())


def check_writable(*paths: Path | None) -> None:
    """Make the folders and try them: better now than after hours.

    Args:
        paths: folders; None is passed over.

    Raises:
        StorageError: one cannot be written.
    """
    for folder in paths:
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be written: {error.strerror}. Nothing was computed: name another "
                "folder."
            ) from error


# --- run -----------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """A finished run."""

    outcome: runner.Outcome
    tasks: list[runner.OpenTask]
    probes: list[Probe]


def evaluate(
    work: Session,
    *,
    encoders: Mapping[str, LoadEncoder],
    tasks: Sequence[Task],
    probes: Sequence[Probe],
    subset: bool,
    reporter: runner.Reporter,
    json_file: Path | None = None,
    shard: runner.Shard = runner.WHOLE,
) -> Ran:
    """Open the tasks, run all units (or the shard's), and write the rows as JSON Lines.

    Raises:
        DataError: the data of the one task cannot be used. Of several tasks those whose data
            cannot be used are failures, told before anything is computed, and the rest goes on.
        ProbeError: no probe serves any of the tasks.
    """
    if not any(task.card.kind in probe.kinds for task in tasks for probe in probes):
        kinds = ", ".join(sorted({task.card.kind for task in tasks}))
        raise ProbeError(
            f"No probe among {', '.join(p.name for p in probes)} serves the kind {kinds}: nothing "
            "would be computed. 'tomoprobe probes' says what each serves."
        )
    only = runner.parts(list(encoders), tasks, shard)
    reporter.planned(only)
    mine = set().union(*only.values())
    opened: list[runner.OpenTask] = []
    missing: list[runner.Failure] = []
    for task in tasks:
        if task.card.name not in mine:  # another shard's: its data need not be here
            continue
        reporter.opening(task.card.name)
        try:
            opened.append(runner.open_task(task, work.data_root, subset))
        except DataError as error:  # of several tasks one may lack its data
            if len(tasks) == 1:
                raise
            missing.append(runner.Failure("all", task.card.name, "all", str(error)))
            reporter.failed(missing[-1])
    loaders = {name: partial(load, work.device) for name, load in encoders.items()}
    outcome = runner.run(
        work.engine, loaders, opened, probes, work.cache, work.device, reporter, only
    )
    outcome = replace(outcome, failures=(*missing, *outcome.failures))
    ran = Ran(outcome, opened, list(probes))
    if json_file:
        write_json_lines([row.result for row in rows_of(work, ran)], json_file)
    return ran


def rows_of(work: Session, ran: Ran) -> list[StoredRow]:
    """The rows of a run, also those that were stored before it."""
    return runner.rows_of(work.engine, ran.outcome.model_shas.values(), ran.tasks, ran.probes)


def write_json_lines(rows: Sequence[Result], path: Path) -> None:
    """One JSON object per line, written beside the file and moved.

    Raises:
        StorageError: the folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(json.dumps(row.as_dict()) + "\n" for row in rows))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"{path} cannot be written: {error.strerror}. The scores are in the database; choose "
            "another file and run the same command again."
        ) from error


def predictions_of(work: Session, ran: Ran) -> Iterator[tuple[Unit, bytes]]:
    """The per-case predictions of a run, as Parquet."""
    wanted = {(o.task.card.name, o.identity.dataset_sha, o.split_sha) for o in ran.tasks}
    versions = {(probe.name, probe.version) for probe in ran.probes}
    names = [opened.task.card.name for opened in ran.tasks]
    for unit, parquet in database.predictions(
        work.engine, names, list(ran.outcome.model_shas.values())
    ):
        if (unit.task, unit.dataset_sha, unit.split_sha) in wanted and (
            (unit.probe, unit.probe_version) in versions
        ):
            yield unit, parquet


def differences(
    work: Session, ran: Ran, probe: str, reference_sha: str
) -> dict[str, dict[str, statistics.Difference]]:
    """Paired differences to a model in each task's own metric, by task and model_sha.

    p-values are adjusted by Holm across all that is returned: what is shown is one family.
    """
    stored: dict[str, dict[str, tuple]] = {}
    for unit, parquet in predictions_of(work, ran):
        if unit.probe == probe:
            stored.setdefault(unit.task, {})[unit.model_sha] = from_parquet(parquet)
    metric = {opened.task.card.name: opened.task.card.metric for opened in ran.tasks}
    return compare.adjusted(
        {
            task: compare.against(reference_sha, by_model, metric[task])
            for task, by_model in stored.items()
            if reference_sha in by_model
        }
    )


def export_predictions(work: Session, ran: Ran, folder: Path) -> None:
    """Write the per-case predictions of a run as Parquet files.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unit, parquet in predictions_of(work, ran):
            path = folder / f"{unit.task}.{unit.probe}.{unit.model_sha[:12]}.parquet"
            part = path.with_suffix(".part")
            part.write_bytes(parquet)
            part.replace(path)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}. Choose another folder."
        ) from error


# --- recompute -----------------------------------------------------------------------------------


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


def serve(url: str, host: str, port: int) -> None:
    """Serve the board until stopped.

    Raises:
        StorageError: the database cannot be used.
    """
    from ..leaderboard import site

    site.serve(url, host, port, site_settings())


def site_settings() -> Settings:
    """What the site is told of this release: it sees neither the tasks nor the probes."""
    cards = [get_task(name).card for name in task_names()]
    known = [protocols.get(name) for name in protocols.names()]
    return Settings(
        suites=suites.SUITES,
        tasks={card.name: Current(card.version, card.changes) for card in cards},
        probes={p.name: Current(p.version, changes_of(p), budget_of(p)) for p in known},
    )
