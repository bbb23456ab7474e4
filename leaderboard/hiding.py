"""What the public may not see of what is stored: withdrawn, under embargo, anonymous, edited cards.

Rows are hidden, never deleted. Submissions of a model whose rows were here before the first of them
hide nothing: else whoever submits a published baseline again could hide or rename it. Nor does one
of predictions, once anything was computed from the model itself.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from .clock import today
from .intake_tables import AUDIT, EDITS, JOBS, SUBMISSIONS
from .records import Json, StoredModel, StoredRow
from .tables import RESULTS

_TELLING = ("name", "title", "authors", "source", "citation", "note")
"""Fields of a card or manifest that say who made a model."""

_TELLING_OF_MANIFEST = (*_TELLING, "weights", "onnx", "readout")
"""A hash or a file name of published weights says it as well; a readout is free text."""

SHOWS = (
    "submission-checked",
    "submission-cancelled",
    "submission-withdrawn",
    "job-failed",
    "card-edited",
    "card-replaced",
    "unit-replaced",
    "reported",
    "report-answered",
)
"""Actions of the audit after which the board may look otherwise."""


@dataclass(frozen=True)
class Hiding:
    """What is withheld from one reader. The default withholds nothing."""

    models: frozenset[str] = frozenset()
    """``model_sha`` of models that are not shown at all."""
    anonymous: frozenset[str] = frozenset()
    """Likewise of models whose name and authors are not shown."""
    edits: Mapping[str, Json] = field(default_factory=dict)
    """Changed fields of the card, by ``model_sha``."""

    def model(self, stored: StoredModel) -> StoredModel:
        """The model as it may be shown."""
        card, manifest, name = dict(stored.card), dict(stored.manifest), stored.name
        for key, value in self.edits.get(stored.model_sha, {}).items():
            card[key] = value
        if stored.model_sha in self.anonymous:
            name = alias(stored.model_sha)
            card = {k: "" if k in _TELLING else v for k, v in card.items()}
            card |= {"name": name, "title": name, "readout": ""}
            manifest = {k: v for k, v in manifest.items() if k not in _TELLING_OF_MANIFEST}
        return replace(stored, name=name, card=card, manifest=manifest)

    def row(self, stored: StoredRow) -> StoredRow:
        """The row as it may be shown."""
        sha = stored.result.model_sha
        if sha not in self.anonymous:
            return stored
        return replace(stored, result=replace(stored.result, model=alias(sha)))


NOTHING = Hiding()


def alias(model_sha: str) -> str:
    """The name under which an anonymous model is shown.

    >>> alias("ab" * 32)
    'anonymous-271a'
    """
    return f"anonymous-{hashlib.sha256(model_sha.encode()).hexdigest()[:4]}"


def public(engine: Engine, now: float | None = None) -> Engine:
    """The same database as the public may see it: every query of ``db`` withholds what is hidden.

    Args:
        engine: of a migrated database.
        now: at this moment, in seconds since 1970; None: whenever it is asked.
    """
    return engine.execution_options(tomoprobe_public=True, tomoprobe_now=now)


def hiding(connection: Connection) -> Hiding:
    """What is withheld from whoever holds this connection."""
    options = connection.get_execution_options()
    if not options.get("tomoprobe_public"):
        return NOTHING
    return withheld(connection, options.get("tomoprobe_now"))


def withheld(connection: Connection, now: float | None = None) -> Hiding:
    """What is withheld from the public at a moment."""
    columns = ("id", "user_id", "model_sha", "kind", "state", "anonymous", "embargo_until")
    computed = sa.exists().where(
        RESULTS.c.model_sha == SUBMISSIONS.c.model_sha, RESULTS.c.origin != "self-run"
    )
    # the first submission's own rows are older than the second: the first one decides
    first = (
        sa.select(SUBMISSIONS.c.model_sha, sa.func.min(SUBMISSIONS.c.created).label("created"))
        .where(SUBMISSIONS.c.kind != "self-run")
        .group_by(SUBMISSIONS.c.model_sha)
        .subquery("first")
    )
    known_before = sa.exists().where(
        RESULTS.c.model_sha == SUBMISSIONS.c.model_sha,
        RESULTS.c.origin != "self-run",  # of any other: a merge keeps what the other board said
        RESULTS.c.added < first.c.created,
    )
    made_rows = sa.exists().where(
        JOBS.c.submission_id == SUBMISSIONS.c.id, JOBS.c.kind == "probe", JOBS.c.state == "done"
    )
    counts = sa.and_(
        SUBMISSIONS.c.model_sha.is_not(None),
        SUBMISSIONS.c.state != "duplicate",
        # what failed without a row says nothing about who may see the rows of others
        sa.or_(
            SUBMISSIONS.c.state.not_in(("failed", "cancelled")),
            SUBMISSIONS.c.kind == "self-run",
            made_rows,
        ),
        # who only claims predictions to be of a model has no say once it was computed here
        sa.or_(SUBMISSIONS.c.kind != "self-run", ~computed),
        ~known_before,
    )
    query = (
        sa.select(*(SUBMISSIONS.c[name] for name in columns))
        .outerjoin(first, first.c.model_sha == SUBMISSIONS.c.model_sha)
        .where(counts)
        .order_by(SUBMISSIONS.c.created, SUBMISSIONS.c.id)
    )
    by_model: dict[str, list[sa.RowMapping]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        by_model[row["model_sha"]].append(row)
    date = today(now)
    models, anonymous, authors = set(), set(), {}
    for sha, found in by_model.items():
        # anybody can claim predictions to be of a model: who has its weights decides
        its = [row for row in found if row["kind"] != "self-run"] or found
        if all(row["state"] == "withdrawn" or (row["embargo_until"] or "") > date for row in its):
            models.add(sha)
        if all(row["anonymous"] for row in its if row["state"] != "withdrawn"):
            anonymous.update(row["model_sha"] for row in its if row["anonymous"])
        authors[sha] = its[0]["user_id"]  # who submitted it first edits its card
    return Hiding(frozenset(models), frozenset(anonymous), _edits(connection, authors))


def _edits(connection: Connection, authors: Mapping[str, int]) -> Mapping[str, Json]:
    query = (
        sa.select(SUBMISSIONS.c.model_sha, SUBMISSIONS.c.user_id, EDITS.c.after)
        .join(SUBMISSIONS, SUBMISSIONS.c.id == EDITS.c.submission_id)
        .order_by(EDITS.c.id)
    )
    found: dict[str, dict[str, object]] = defaultdict(dict)
    for sha, user, after in connection.execute(query):
        if sha in authors and authors[sha] == user:
            found[sha] |= after
    return found


def last_change(connection: Connection) -> int:
    """Grows whenever what is withheld changes, other than by a new day."""
    query = sa.select(sa.func.coalesce(sa.func.max(AUDIT.c.id), 0)).where(AUDIT.c.action.in_(SHOWS))
    return connection.scalar(query) or 0
