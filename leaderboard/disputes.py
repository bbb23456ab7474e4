"""What readers say is wrong with the rows of a model, and what is answered."""

from typing import get_args

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import IntakeError, UnknownNameError
from .accounts import audit
from .clock import stamp
from .intake_records import Report, ReportKind, ReportState
from .intake_tables import REPORTS, USERS
from .opening import writing
from .storage_errors import reported
from .tables import MODELS

MOST_LETTERS = 4_000
"""Of a report or an answer: about a page."""


def report(
    engine: Engine,
    *,
    model_sha: str,
    kind: ReportKind,
    text: str,
    task: str | None = None,
    by: int | None = None,
    now: float | None = None,
) -> Report:
    """Say that rows of a model are wrong, or that it has seen test data.

    Args:
        engine: of a migrated database.
        model_sha: of a stored model.
        kind: what is said.
        text: why.
        task: name; None: all rows.
        by: id of a user.
        now: seconds since 1970; None: the clock's.

    Raises:
        UnknownNameError: no such model or kind.
        IntakeError: no text, or too much of it.
    """
    if kind not in get_args(ReportKind):
        raise UnknownNameError.of("kind of report", str(kind)[:40], get_args(ReportKind))
    words = _checked(text)
    model_sha = model_sha.replace("\x00", "")  # PostgreSQL refuses to look for that
    task = None if task is None else task.replace("\x00", "")
    with reported(engine), writing(engine) as connection:
        if not connection.scalar(sa.select(sa.exists().where(MODELS.c.model_sha == model_sha))):
            raise UnknownNameError(
                f"No model has the identity '{model_sha[:80]}'. Report one from its page."
            )
        row = sa.insert(REPORTS).values(
            model_sha=model_sha,
            task=task,
            kind=kind,
            text=words,
            by=by,
            at=stamp(now),
            state="open",
        )
        id = connection.execute(row.returning(REPORTS.c.id)).scalar_one()
        name = connection.scalar(sa.select(USERS.c.name).where(USERS.c.id == by))
        audit(connection, name or "platform", "reported", model_sha, now=now, report=id, kind=kind)
        return _report(connection, id)


def reports(
    engine: Engine, model_sha: str | None = None, state: ReportState | None = None
) -> list[Report]:
    """Oldest first; a filter that is None lets everything through."""
    query = sa.select(REPORTS).order_by(REPORTS.c.id)
    if model_sha is not None:
        query = query.where(REPORTS.c.model_sha == model_sha.replace("\x00", ""))
    if state is not None:
        query = query.where(REPORTS.c.state == state)
    with reported(engine), engine.connect() as connection:
        return [Report(**row) for row in connection.execute(query).mappings()]


def answer(
    engine: Engine, id: int, state: ReportState, text: str, by: str, now: float | None = None
) -> Report:
    """Decide on a report; one that was decided can be decided anew.

    Args:
        engine: of a migrated database.
        id: of the report.
        state: the decision.
        text: why.
        by: name of a maintainer.
        now: seconds since 1970; None: the clock's.

    Raises:
        UnknownNameError: no such report or state.
        IntakeError: no text, or too much of it.
    """
    if state not in get_args(ReportState):
        raise UnknownNameError.of("state of a report", str(state)[:40], get_args(ReportState))
    words = _checked(text)
    with reported(engine), writing(engine) as connection:
        found = _report(connection, id)
        connection.execute(
            sa.update(REPORTS).where(REPORTS.c.id == id).values(state=state, answer=words)
        )
        audit(connection, by, "report-answered", found.model_sha, now=now, report=id, state=state)
        return _report(connection, id)


def _report(connection: Connection, id: int) -> Report:
    found = connection.execute(sa.select(REPORTS).where(REPORTS.c.id == id)).mappings().first()
    if found is None:
        raise UnknownNameError(f"There is no report {id}.")
    return Report(**found)


def _checked(text: str) -> str:
    words = text.replace("\x00", "").strip()
    if not 1 <= len(words) <= MOST_LETTERS:
        raise IntakeError(
            "report-text",
            f"The text has {len(words)} letters; expected 1 to {MOST_LETTERS}.",
            stage="upload",
            hint="Say what is wrong and how you know, with a link to more.",
        )
    return words
