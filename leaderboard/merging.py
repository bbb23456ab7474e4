"""Bring the results of several databases together: shards of one run, or colleagues' files."""

from collections import defaultdict
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Engine

from . import db
from .records import StoredRow, Unit


class Merged(NamedTuple):
    """What a merge did."""

    added: int
    """Units that were new."""
    present: int
    """Units that were there already; they are left as they are."""


def merge(engine: Engine, other: Engine) -> Merged:
    """Add every unit of ``other`` with its cards, rows and predictions, and what waits there.

    Each unit is one transaction: a merge that was stopped goes on when it is called again.

    Args:
        engine: of a migrated database; written.
        other: of a migrated database; only read.

    Raises:
        StorageError: either cannot be used, or they hold different tasks under one version.
    """
    cards = {(task.name, task.version): task.card for task in db.tasks(other)}
    models = {model.model_sha: model for model in db.models(other)}
    rows: dict[Unit, list[StoredRow]] = defaultdict(list)
    for row in db.rows(other):
        rows[Unit(*(getattr(row.result, name) for name in Unit._fields))].append(row)
    for card in cards.values():
        db.check_card(engine, card)  # before anything is added
    added = 0
    for unit, its in rows.items():
        model = models[unit.model_sha]
        added += db.add(
            engine,
            model_sha=unit.model_sha,
            model_card=model.card,
            manifest=model.manifest,
            task_card=cards[unit.task, unit.task_version],
            results=[row.result for row in its],
            parquet=db.parquet(other, unit),
            flags=[row.flags for row in its],
            added=datetime.fromisoformat(its[0].added),
        )
    db.queue(engine, db.pending(other))
    return Merged(added, len(rows) - added)
