"""Evaluate encoders on tasks and store what comes out: one unit at a time, each exactly once.

A unit is one encoder on one task with one probe. Features are extracted once per (encoder, data
set) and shared. What is stored already is not computed again, so a run that was stopped goes on
where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..benchmark import evaluate, predictions, splits, studies
from ..benchmark.cache import Extracted, FeatureCache
from ..benchmark.errors import ProbeError, TomoprobeError, UnknownNameError
from ..benchmark.features import (
    DataIdentity,
    FrozenEncoder,
    Progress,
    data_set_of,
    device_name,
    identify,
)
from ..benchmark.studies import AnyProbe, Setting, Study
from ..benchmark.types import Case, EncoderCard, Probe, Result, Task
from ..leaderboard import db
from ..leaderboard.records import Origin, StoredRow
from ..tasks import open_cases

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection, Engine

    from .load import LoadedEncoder


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenTask:
    """A task whose cases have been found, counted, placed and hashed."""

    task: Task
    cases: Sequence[Case]
    complete: bool
    identity: DataIdentity
    split_sha: str


@dataclass(frozen=True)
class Failure:
    """A unit that could not be done, and why."""

    encoder: str
    task: str
    probe: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    model_shas: Mapping[str, str]
    """Of the encoders that could be loaded, by the name that was asked for, in their order."""
    failures: tuple[Failure, ...]


class Shard(NamedTuple):
    """One of several parts of a run, for machines that share nothing."""

    number: int
    """From 1."""
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From ``"2/4"``.

        Raises:
            UnknownNameError: anything else.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UnknownNameError(
                f"'{text}' is no part of a run. Expected i/n with i from 1 to n, such as 2/4: the "
                "second of four."
            )
        return cls(int(number), int(of))

    def holds(self, index: int) -> bool:
        """Whether the unit of that index (from 0) is in this part."""
        return index % self.of == self.number - 1


WHOLE = Shard(1, 1)


class EncoderFacts(Protocol):
    """What a row says about an encoder: all but the network itself."""

    @property
    def card(self) -> EncoderCard: ...  # noqa: D102
    @property
    def model_sha(self) -> str: ...  # noqa: D102
    @property
    def manifest(self) -> Mapping[str, Any]:
        """The canonical manifest, of which ``model_sha`` is the hash."""
        ...


class Reporter(Protocol):
    """Who is told how a run goes."""

    def planned(self, plan: Mapping[str, Collection[str]]) -> None:
        """What is done here: names of tasks by encoder, as it was asked for."""
        ...

    def loading(self, encoder: str) -> None:
        """An encoder, as it was asked for, is being loaded; what follows is about it."""
        ...

    def opening(self, task: str) -> None:
        """A task's cases are being found, counted and hashed."""
        ...

    def extracting(self, encoder: str, task: str, done: int, total: int) -> None:
        """A case has been embedded."""
        ...

    def probing(self, encoder: str, task: str, probe: str) -> None:
        """A probe starts."""
        ...

    def working(self, encoder: str, task: str, probe: str, done: int, total: int) -> None:
        """A study has done one of its steps: it counts images, pairs or fits, as it likes."""
        ...

    def finished(
        self, encoder: str, task: str, probe: str, new: bool, results: Sequence[Result] = ()
    ) -> None:
        """A unit is stored; ``new`` is False if it was there before, and then without results."""
        ...

    def failed(self, failure: Failure) -> None:
        """A unit could not be done; the run goes on with the next."""
        ...


def open_task(task: Task, root: Path | None, subset: bool) -> OpenTask:
    """Find, count, place and hash the cases of a task; reads no voxel.

    Raises:
        DataError: the data are missing, incomplete (without ``subset``) or contradictory.
    """
    cases, complete = open_cases(task, root, subset)
    split_sha = splits.split_sha(task.card, splits.seats_of(cases))
    return OpenTask(task, cases, complete, identify(task, cases), split_sha)


def run(
    engine: Engine,
    encoders: Mapping[str, Callable[[], LoadedEncoder]],
    tasks: Sequence[OpenTask],
    probes: Sequence[AnyProbe],
    cache: FeatureCache,
    device: str,
    reporter: Reporter,
    only: Mapping[str, Collection[str]] | None = None,
    pictures: Path | None = None,
) -> Outcome:
    """Evaluate every encoder on every task with every probe that serves its kind.

    Args:
        engine: of a migrated database.
        encoders: by name; loaded one after the other, so that only one is in memory.
        tasks: opened.
        probes: those that do not serve a task's kind are passed over.
        cache: of features.
        device: "cpu" or "cuda[:i]".
        reporter: told of every step.
        only: names of the tasks that are done here, by encoder: see ``parts``. None: all.
        pictures: folder for what studies draw; None: nothing is drawn.

    Returns:
        What ran, and the units that could not be done. A fault of one never stops the others.
    """
    failures: list[Failure] = []
    model_shas: dict[str, str] = {}

    def fail(encoder: str, task: str, probe: str, error: TomoprobeError) -> None:
        failures.append(Failure(encoder, task, probe, str(error)))
        reporter.failed(failures[-1])

    for opened in tasks:
        db.check_card(engine, published_card(opened))
    for asked, load in encoders.items():
        mine = [o for o in tasks if only is None or o.task.card.name in only[asked]]
        if not mine:
            continue
        reporter.loading(asked)
        try:
            encoder = load()
        except TomoprobeError as error:
            fail(asked, "all", "all", error)
            continue
        name = encoder.card.name
        model_shas[asked] = encoder.model_sha
        for opened in mine:
            card = opened.task.card
            todo = []
            for probe in probes:
                if card.kind in probe.kinds:
                    if is_done(engine, encoder, opened, probe):
                        reporter.finished(name, card.name, probe.name, False)
                    else:
                        todo.append(probe)
            if not todo:
                continue
            features: Extracted | None = None
            if any(not isinstance(probe, Study) for probe in todo):
                try:
                    features = embedded(
                        cache,
                        encoder,
                        opened,
                        device,
                        lambda done, total, n=name, t=card.name: reporter.extracting(
                            n, t, done, total
                        ),
                    )
                except TomoprobeError as error:
                    fail(name, card.name, "all", error)
                    continue
            for probe in todo:
                reporter.probing(name, card.name, probe.name)
                try:
                    if isinstance(probe, Study):
                        told = partial(reporter.working, name, card.name, probe.name)
                        answer = studied(cache, encoder, opened, probe, device, told, pictures)
                    else:
                        assert features is not None  # noqa: S101  embedded above
                        answer = probed(opened, probe, features)
                    results = store(engine, encoder, opened, probe, answer, device)
                except TomoprobeError as error:
                    fail(name, card.name, probe.name, error)
                else:
                    reporter.finished(name, card.name, probe.name, True, results)
    return Outcome(model_shas, tuple(failures))


def parts(encoders: Sequence[str], tasks: Sequence[Task], shard: Shard) -> dict[str, set[str]]:
    """Names of the tasks that a shard evaluates, by encoder.

    Dealt out by (encoder, data set), so that no two shards extract the same features. Depends on
    the order in which encoders and tasks are named: every machine is given the same.
    """
    data_sets = list(dict.fromkeys(data_set_of(task.card) for task in tasks))
    n = len(data_sets)

    def is_mine(e: int, task: Task) -> bool:
        index = e * n + data_sets.index(data_set_of(task.card))
        # shifted by one whenever the pattern would repeat: else one shard could get the largest
        # data set of every encoder
        return shard.holds(index + index // lcm(n, shard.of))

    return {
        encoder: {task.card.name for task in tasks if is_mine(e, task)}
        for e, encoder in enumerate(encoders)
    }


def is_done(engine: Engine, encoder: LoadedEncoder, opened: OpenTask, probe: AnyProbe) -> bool:
    """Whether this unit is stored, for exactly these images, targets and sides."""
    return db.is_done(
        engine,
        model_sha=encoder.model_sha,
        task=opened.task.card.name,
        task_version=opened.task.card.version,
        probe=probe.name,
        probe_version=probe.version,
        dataset_sha=opened.identity.dataset_sha,
        split_sha=opened.split_sha,
    )


class Answered(NamedTuple):
    """Per-case predictions and what they cost, features included."""

    table: pd.DataFrame
    seconds: float


def embedded(
    cache: FeatureCache,
    encoder: FrozenEncoder,
    opened: OpenTask,
    device: str,
    progress: Progress | None = None,
) -> Extracted:
    """The embeddings of a task's cases, from the cache or extracted now.

    Raises:
        EncoderError: the encoder misbehaves.
        DataError: an image cannot be used.
        StorageError: the cache cannot be written.
    """
    card = opened.task.card
    return cache.get(
        encoder,
        data_set_of(card),
        opened.cases,
        opened.identity,
        card.field_of_view_mm,
        device,
        progress,
    )


def probed(opened: OpenTask, probe: Probe, features: Extracted) -> Answered:
    """Fit a probe on features, in the order of the task's cases.

    Raises:
        ProbeError: the probe cannot be fitted.
    """
    started = time.perf_counter()
    table = evaluate.predict(opened.task.card, opened.cases, features.x, probe)
    return Answered(table, features.seconds + time.perf_counter() - started)


def studied(
    cache: FeatureCache,
    encoder: FrozenEncoder,
    opened: OpenTask,
    study: Study,
    device: str,
    progress: Progress | None = None,
    pictures: Path | None = None,
) -> Answered:
    """Let a study run the encoder.

    Args:
        cache: of embeddings and maps.
        encoder: on its device.
        opened: the task.
        study: one that serves its kind.
        device: of the encoder.
        progress: told of the study's steps.
        pictures: folder; those of this run go into one of their own below it.

    Raises:
        TomoprobeError: see ``Study.run``.
    """
    card = opened.task.card
    folder = None
    if pictures is not None:
        folder = pictures / f"{card.name}.{study.name}.{encoder.card.name}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # scores are worth more than pictures
            logger.warning("no pictures: %s cannot be made (%s)", folder, error.strerror)
            folder = None
    setting = Setting(
        card,
        opened.cases,
        encoder,
        cache,
        opened.identity,
        device,
        progress=progress,
        pictures=folder,
    )
    started = time.perf_counter()
    try:
        table = study.run(setting)
    except (TomoprobeError, MemoryError):
        raise
    except Exception as error:  # a library may give up in any way; other units go on
        raise ProbeError(
            f"'{study.name}' of '{encoder.card.name}' on '{card.name}' gave up: "
            f"{type(error).__name__}: {error}. If memory ran out, use a GPU with more or the CPU; "
            "else report it with this line."
        ) from error
    return Answered(table, time.perf_counter() - started + sum(setting.earlier_s))


def store(
    engine: Engine,
    encoder: EncoderFacts,
    opened: OpenTask,
    probe: AnyProbe,
    answer: Answered,
    device: str,
    *,
    origin: Origin = "local",
    unsafe: bool = False,
    also: Callable[[Connection], None] | None = None,
) -> Sequence[Result]:
    """Score what a probe answered and store both, in one transaction.

    Args:
        engine: of a migrated database.
        encoder: whose features they are.
        opened: the task.
        probe: that answered.
        answer: its predictions.
        device: on which the encoder ran.
        origin: see ``db.add``; likewise ``unsafe`` and ``also``.
        unsafe: the network ran without isolation.
        also: what else belongs into the transaction.

    Raises:
        StorageError: the database cannot be written.
    """
    card, table = opened.task.card, answer.table
    # a study may train on nobody, and then everybody is tested at once
    trained = not isinstance(probe, Study) or len(set(table["fold"])) > 1
    provenance = predictions.Provenance(
        model=encoder.card.name,
        model_sha=encoder.model_sha,
        task=card.name,
        task_version=card.version,
        probe=probe.name,
        probe_version=probe.version,
        kind=studies.answers_of(probe, card),
        width=encoder.card.width,
        cv=splits.uses_cv(card) and trained,
        subset=not opened.complete,
        seconds=round(answer.seconds, 3),
        device=device_name(device),
        software=predictions.software(),
        dataset_sha=opened.identity.dataset_sha,
        split_sha=opened.split_sha,
        area=evaluate.has_area(probe),
        skipped=evaluate.skipped_sizes(card, opened.cases, probe),
    )
    scores = evaluate.score(table, provenance)
    db.add(
        engine,
        model_sha=encoder.model_sha,
        model_card=encoder.card.as_dict(),
        manifest=dict(encoder.manifest),
        task_card=published_card(opened),
        results=scores.results,
        parquet=predictions.to_parquet(table, provenance),
        flags=scores.flags,
        origin=origin,
        unsafe=unsafe,
        also=also,
    )
    return scores.results


def published_card(opened: OpenTask) -> dict:
    """The card with the split of the complete set, where that is known."""
    task = opened.task
    seats = splits.assign(task.card, task.roster())
    if not seats and opened.complete:
        seats = splits.seats_of(opened.cases)
    return splits.published_card(task.card, seats)


def rows_of(
    engine: Engine, model_shas: Iterable[str], tasks: Sequence[OpenTask], probes: Sequence[AnyProbe]
) -> list[StoredRow]:
    """The stored rows of these models on exactly these data, in the order of the models."""
    order = {sha: i for i, sha in enumerate(model_shas)}
    wanted = {(o.task.card.name, o.identity.dataset_sha, o.split_sha) for o in tasks}
    versions = {(probe.name, probe.version) for probe in probes}
    found = db.rows(engine, tasks=[o.task.card.name for o in tasks], models=list(order))
    rows = [
        row
        for row in found
        if (row.result.task, row.result.dataset_sha, row.result.split_sha) in wanted
        and (row.result.probe, row.result.probe_version) in versions
    ]
    return sorted(
        rows,
        key=lambda row: (
            order[row.result.model_sha],
            row.result.task,
            row.result.probe,
            row.result.metric,
            row.result.shots or 0,
        ),
    )
