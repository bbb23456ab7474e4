"""After a version was raised: recompute what stored predictions allow, queue what needs features.

Nothing is edited: the old rows stay, superseded, and the new version gets rows of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ..benchmark import evaluate, predictions
from ..benchmark.budgets import changes_of
from ..benchmark.errors import StorageError
from ..benchmark.studies import AnyProbe
from ..benchmark.types import TaskCard, redone_since
from ..leaderboard import db
from ..leaderboard.records import Origin, Pending, StoredModel, Unit
from ..leaderboard.versions import since

if TYPE_CHECKING:
    from sqlalchemy import Engine

Fate = Literal["rescored", "queued", "waiting", "left"]
"""Done from stored predictions; waits for features from now on; has waited before; left alone: the
probe is gone, or the copy was incomplete and is nobody's to evaluate again."""


@dataclass(frozen=True)
class Rescored:
    """A unit of an older version, and what became of it."""

    unit: Unit
    model: str
    fate: Fate
    why: str
    """What changed since, in the words of the changes."""


def rescore(
    engine: Engine,
    cards: Mapping[str, TaskCard],
    probes: Mapping[str, AnyProbe],
    dry_run: bool = False,
) -> Iterator[Rescored]:
    """Bring every unit of an older version up to today's, or queue it; current ones are passed.

    Args:
        engine: of a migrated database.
        cards: today's tasks, by name. Others are private: their stored version is taken as
            today's.
        probes: today's, by name.
        dry_run: say what would be done and change nothing.

    Raises:
        StorageError: the database cannot be written.
    """
    models = {model.model_sha: model for model in db.models(engine)}
    state = _State.of(engine)
    for unit in state.newest:
        model, probe = models[unit.model_sha], probes.get(unit.probe)
        card = cards.get(unit.task)
        if probe is None:
            yield Rescored(unit, model.name, "left", f"probe '{unit.probe}' is gone")
            continue
        now = _Now.of(unit, card, probe)
        if (unit.task_version, unit.probe_version) >= now.versions or state.has(unit, now):
            continue
        origin = state.origins.get(unit, ("local", False))
        if now.predictions_hold(unit):
            fate = _carried_over(engine, unit, card, probe, now, model, origin, dry_run)
        elif unit in state.subset or origin[0] == "self-run":  # only its submitter could redo it
            fate = "left"
        else:
            fate = _queued(engine, unit, now, dry_run)
        yield Rescored(unit, model.name, fate, now.why)


@dataclass(frozen=True)
class _Now:
    """Today's versions of a unit's task and probe, and what they need."""

    task_version: int
    probe_version: int
    task_since: int
    """The oldest version whose predictions still hold; likewise the probe's."""
    probe_since: int
    why: str

    @classmethod
    def of(cls, unit: Unit, card: TaskCard | None, probe: AnyProbe) -> _Now:
        task_version = unit.task_version if card is None else card.version
        changes = () if card is None else card.changes
        parts = [
            since("task", unit.task_version, task_version, changes),
            since("probe", unit.probe_version, probe.version, changes_of(probe)),
        ]
        return cls(
            task_version,
            probe.version,
            redone_since(task_version, changes),
            redone_since(probe.version, changes_of(probe)),
            "; ".join(part for part in parts if part),
        )

    @property
    def versions(self) -> tuple[int, int]:
        return (self.task_version, self.probe_version)

    def predictions_hold(self, unit: Unit) -> bool:
        return self.task_since <= unit.task_version and self.probe_since <= unit.probe_version


@dataclass(frozen=True)
class _State:
    """What is stored."""

    units: frozenset[Unit]
    subset: frozenset[Unit]
    """Units that were made on an incomplete copy."""
    origins: Mapping[Unit, tuple[Origin, bool]]
    """Who computed a unit, and whether without isolation."""

    @classmethod
    def of(cls, engine: Engine) -> _State:
        subset: set[Unit] = set()
        origins: dict[Unit, tuple[Origin, bool]] = {}
        for row in db.rows(engine):
            unit = Unit(*(getattr(row.result, name) for name in Unit._fields))
            origins[unit] = (row.origin, row.unsafe)
            if row.result.subset:
                subset.add(unit)
        return cls(frozenset(db.units(engine)), frozenset(subset), origins)

    @property
    def newest(self) -> list[Unit]:
        """Of every model, task, probe and state of the data the newest version, sorted."""
        found: dict[tuple[str, ...], Unit] = {}
        for unit in sorted(self.units):
            key = (unit.model_sha, unit.task, unit.probe, unit.dataset_sha, unit.split_sha)
            found[key] = max(
                found.get(key, unit), unit, key=lambda u: (u.task_version, u.probe_version)
            )
        return list(found.values())

    def has(self, unit: Unit, now: _Now) -> bool:
        """Whether the unit was redone on complete data, of today's versions."""
        question = (unit.model_sha, unit.task, unit.probe, *now.versions)
        return any(
            (u.model_sha, u.task, u.probe, u.task_version, u.probe_version) == question
            for u in self.units - self.subset
        )


def _queued(engine: Engine, unit: Unit, now: _Now, dry_run: bool) -> Fate:
    """Let a unit wait for features."""
    waiting = Pending(
        unit.model_sha, unit.task, now.task_version, unit.probe, now.probe_version, now.why
    )
    if dry_run:
        known = [(p.model_sha, p.task, p.probe, p.task_version) for p in db.pending(engine)]
        key = (waiting.model_sha, waiting.task, waiting.probe, waiting.task_version)
        return "waiting" if key in known else "queued"
    return "queued" if db.queue(engine, [waiting]) else "waiting"


def _carried_over(
    engine: Engine,
    unit: Unit,
    card: TaskCard | None,
    probe: AnyProbe,
    now: _Now,
    model: StoredModel,
    origin: tuple[Origin, bool],
    dry_run: bool,
) -> Fate:
    """Score the stored predictions again and add them under today's versions."""
    if dry_run:
        return "rescored"
    try:
        table, about = predictions.from_parquet(db.parquet(engine, unit))
    except StorageError:  # one damaged unit does not stop the others
        now = replace(now, why=f"{now.why}; the stored predictions cannot be read")
        return _queued(engine, unit, now, dry_run)
    about = replace(
        about,
        task_version=now.task_version,
        probe_version=now.probe_version,
        area=evaluate.has_area(probe),
        software=predictions.software(),
    )
    scores = evaluate.score(table, about)
    stored = db.task(engine, unit.task, unit.task_version).card
    # the sides are those of the older version: its predictions still hold
    today = stored if card is None else {**card.as_dict(), "split_sha": stored.get("split_sha")}
    db.add(
        engine,
        model_sha=unit.model_sha,
        model_card=model.card,
        manifest=model.manifest,
        task_card=today,
        results=scores.results,
        parquet=predictions.to_parquet(table, about),
        flags=scores.flags,
        origin=origin[0],
        unsafe=origin[1],
    )
    return "rescored"
