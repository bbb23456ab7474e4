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
    withheld: int = 0
    """Units that the other database does not show, or not with a name; they stay there."""


def merge(engine: Engine, other: Engine) -> Merged:
    """Add every unit of ``other`` with its cards, rows and predictions, and what waits there.

    Accounts, tokens, sessions, uploads, submissions, jobs and the audit are another board's and
    stay there. As they say what is withdrawn, under embargo or anonymous, such units stay there,
    too: here nothing would hide them. Edits of cards come along as part of the cards.

    Each unit is one transaction: a merge that was stopped goes on when it is called again.

    Args:
        engine: of a migrated database; written.
        other: of a migrated database; only read.

    Raises:
        StorageError: either cannot be used, or they hold different tasks under one version.
    """
    shown = db.public(other)
    cards = {(task.name, task.version): task.card for task in db.tasks(other)}
    anonymous = db.anonymous(other)
    models = {m.model_sha: m for m in db.models(shown) if m.model_sha not in anonymous}
    rows: dict[Unit, list[StoredRow]] = defaultdict(list)
    for row in db.rows(other):
        rows[Unit(*(getattr(row.result, name) for name in Unit._fields))].append(row)
    for card in cards.values():
        db.check_card(engine, card)  # before anything is added
    added = withheld = 0
    for unit, its in rows.items():
        model = models.get(unit.model_sha)
        if model is None:
            withheld += 1
            continue
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
            origin=its[0].origin,
            unsafe=its[0].unsafe,
        )
    db.queue(engine, [unit for unit in db.pending(other) if unit.model_sha in models])
    return Merged(added, len(rows) - added - withheld, withheld)
