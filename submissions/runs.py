"""A run: evaluate, and give back what it found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple

from ..benchmark import compare, statistics
from ..benchmark.errors import (
    DataError,
    ProbeError,
    StorageError,
)
from ..benchmark.paths import cache_home
from ..benchmark.predictions import from_parquet
from ..benchmark.studies import AnyProbe, metric_of
from ..benchmark.types import Result, Task
from ..leaderboard import db as database
from ..leaderboard.records import StoredRow, Unit
from . import runner

if TYPE_CHECKING:
    from .choosing import LoadEncoder
    from .session import Session


def run_folder(started: datetime) -> Path:
    """Where a run's summary goes unless a folder is named."""
    return cache_home() / "runs" / started.strftime("%Y-%m-%dT%H-%M-%SZ")


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


class Ran(NamedTuple):
    """A finished run."""

    outcome: runner.Outcome
    tasks: list[runner.OpenTask]
    probes: list[AnyProbe]


def evaluate(
    work: Session,
    *,
    encoders: Mapping[str, LoadEncoder],
    tasks: Sequence[Task],
    probes: Sequence[AnyProbe],
    subset: bool,
    reporter: runner.Reporter,
    json_file: Path | None = None,
    shard: runner.Shard = runner.WHOLE,
    pictures: Path | None = None,
) -> Ran:
    """Open the tasks, run all units (or the shard's), and write the rows as JSON Lines.

    What protocols draw goes into the folder ``pictures``.

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
        work.engine, loaders, opened, probes, work.cache, work.device, reporter, only, pictures
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
    work: Session, ran: Ran, probes: Mapping[str, AnyProbe], reference_sha: str
) -> dict[str, dict[str, statistics.Difference]]:
    """Paired differences to a model in the metric that ranks, by task and model_sha.

    p-values are adjusted by Holm across all that is returned: what is shown is one family.

    Args:
        work: where the predictions are.
        ran: the run.
        probes: by task, the one whose scores are compared; tasks that are not named are left out.
        reference_sha: of the model.
    """
    stored: dict[str, dict[str, tuple]] = {}
    for unit, parquet in predictions_of(work, ran):
        if unit.task in probes and unit.probe == probes[unit.task].name:
            stored.setdefault(unit.task, {})[unit.model_sha] = from_parquet(parquet)
    cards = {opened.task.card.name: opened.task.card for opened in ran.tasks}
    return compare.adjusted(
        {
            task: compare.against(reference_sha, by_model, metric_of(probes[task], cards[task]))
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
