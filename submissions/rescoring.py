"""After a version was raised: recompute what stored predictions allow, queue what needs features.

Nothing is edited: the old rows stay, superseded, and the new version gets rows of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ..benchmark import evaluate, predictions
from ..benchmark.budgets import changes_of
from ..benchmark.types import Change, Probe, TaskCard, redone_since
from ..leaderboard import db
from ..leaderboard.records import Pending, StoredModel, Unit

if TYPE_CHECKING:
    from sqlalchemy import Engine

Fate = Literal["rescored", "queued", "unknown"]
"""Done from stored predictions; waits for features; a private task or a probe that is gone."""


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
    probes: Mapping[str, Probe],
    dry_run: bool = False,
) -> Iterator[Rescored]:
    """Bring every unit of an older version up to today's, or queue it; current ones are passed.

    Args:
        engine: of a migrated database.
        cards: today's tasks, by name.
        probes: today's, by name.
        dry_run: say what would be done and change nothing.

    Raises:
        StorageError: the database cannot be written, or its predictions cannot be read.
    """
    models = {model.model_sha: model for model in db.models(engine)}
    for unit in _newest(db.units(engine)):
        name = models[unit.model_sha].name
        card, probe = cards.get(unit.task), probes.get(unit.probe)
        if card is None or probe is None:
            yield Rescored(unit, name, "unknown", "")
            continue
        if unit.task_version >= card.version and unit.probe_version >= probe.version:
            continue
        why = _why(unit, card, probe)
        still_holds = (
            redone_since(card.version, card.changes) <= unit.task_version
            and redone_since(probe.version, changes_of(probe)) <= unit.probe_version
        )
        if not dry_run:
            if still_holds:
                _carry_over(engine, unit, card, probe, models[unit.model_sha])
            else:
                waiting = Pending(
                    unit.model_sha, unit.task, card.version, unit.probe, probe.version, why
                )
                db.queue(engine, [waiting])
        yield Rescored(unit, name, "rescored" if still_holds else "queued", why)


def _newest(units: Iterable[Unit]) -> list[Unit]:
    """Of every model, task and probe the newest versions: one unit per state of the data."""
    found: dict[tuple[str, str, str], list[Unit]] = {}
    for unit in units:
        found.setdefault((unit.model_sha, unit.task, unit.probe), []).append(unit)
    chosen = []
    for its in found.values():
        newest = max((u.task_version, u.probe_version) for u in its)
        chosen += [u for u in its if (u.task_version, u.probe_version) == newest]
    return chosen


def _why(unit: Unit, card: TaskCard, probe: Probe) -> str:
    """The reasons of all changes since, or that there were some."""
    since = [
        *_since(f"task version {card.version}", unit.task_version, card.version, card.changes),
        *_since(
            f"probe version {probe.version}",
            unit.probe_version,
            probe.version,
            changes_of(probe),
        ),
    ]
    return "; ".join(since)


def _since(what: str, old: int, now: int, changes: Iterable[Change]) -> list[str]:
    if now <= old:
        return []
    reasons = [change.why for change in changes if old < change.version <= now]
    return [f"{what}: {' '.join(reasons) or 'no reason is stated'}"]


def _carry_over(
    engine: Engine, unit: Unit, card: TaskCard, probe: Probe, model: StoredModel
) -> None:
    """Score the stored predictions again and add them under today's versions."""
    table, about = predictions.from_parquet(db.parquet(engine, unit))
    about = replace(
        about,
        task_version=card.version,
        probe_version=probe.version,
        area=evaluate.has_area(probe),
        software=predictions.software(),
    )
    scores = evaluate.score(table, about)
    stored = db.task(engine, unit.task, unit.task_version).card
    db.add(
        engine,
        model_sha=unit.model_sha,
        model_card=model.card,
        manifest=model.manifest,
        # the sides are those of the older version: its predictions still hold
        task_card=card.as_dict() | {"split_sha": stored.get("split_sha")},
        results=scores.results,
        parquet=predictions.to_parquet(table, about),
        flags=scores.flags,
    )
