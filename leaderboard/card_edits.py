"""Changes of the prose of a card after it was submitted; every version is kept.

What decides the features, or is the name of the model, cannot be changed: that is another model.
"""

import tomllib
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import ConflictError, ManifestError
from .accounts import audit
from .clock import stamp
from .intake_records import Edit, Submission
from .intake_tables import EDITS
from .job_rows import find_submission, get_submission, update
from .opening import writing
from .storage_errors import reported

_MOST = {
    "title": 300,
    "authors": 2_000,
    "license": 300,
    "source": 2_000,
    "citation": 4_000,
    "note": 20_000,
}
"""Letters of each text."""

_REQUIRED = ("title", "authors", "license")

_MOST_DATA_SETS, _LONGEST_NAME = 200, 300

EDITABLE = (*_MOST, "pretraining")


def edit_card(
    engine: Engine, id: str, by: str, changes: Mapping[str, Any], now: float | None = None
) -> Submission:
    """Change fields of a card.

    Args:
        engine: of a migrated database.
        id: of the submission; whose it is, the caller has checked.
        by: name of a user.
        changes: texts of ``EDITABLE``; ``pretraining`` is a list of texts.
        now: seconds since 1970; None: the clock's.

    Raises:
        ManifestError: another field, or a value that cannot be.
        ConflictError: the submission has no card of its own: it is a duplicate.
        UnknownNameError: there is none.
    """
    after = {name: _checked(name, value) for name, value in changes.items()}
    if not after:
        raise ManifestError(f"Nothing is changed. Name one of {', '.join(EDITABLE)}.")
    with reported(engine), writing(engine) as connection:
        found = find_submission(connection, id)
        if found.state == "duplicate":
            raise ConflictError(
                f"Submission {id} is a duplicate and has no card of its own. Edit the one that it "
                "is a duplicate of."
            )
        current = _current(connection, found)
        before = {name: current.get(name, [] if name == "pretraining" else "") for name in after}
        connection.execute(
            sa.insert(EDITS).values(
                submission_id=id, at=stamp(now), by=by, before=before, after=after
            )
        )
        update(connection, id, now)
        audit(connection, by, "card-edited", id, now=now, fields=sorted(after))
        return get_submission(connection, id)


def edits(engine: Engine, id: str) -> list[Edit]:
    """The changes of a submission's card, oldest first."""
    with reported(engine), engine.connect() as connection:
        return _edits(connection, id)


def _edits(connection: Connection, id: str) -> list[Edit]:
    query = sa.select(EDITS).where(EDITS.c.submission_id == id).order_by(EDITS.c.id)
    return [Edit(**row) for row in connection.execute(query).mappings()]


def _current(connection: Connection, found: Submission) -> dict[str, Any]:
    """The card as it was sent, with what was changed since."""
    try:
        card: dict[str, Any] = tomllib.loads(found.manifest)
    except tomllib.TOMLDecodeError:  # was refused for that, or will be
        card = {}
    for edit in _edits(connection, found.id):
        card |= edit.after
    return card


def _checked(name: str, value: Any) -> Any:
    if name not in EDITABLE:
        raise ManifestError(
            f"'{name[:80]}' cannot be changed: expected one of {', '.join(EDITABLE)}. Other fields "
            "decide the features, so with others it is another model: submit that."
        )
    if name == "pretraining":
        if not isinstance(value, list | tuple) or len(value) > _MOST_DATA_SETS:
            raise ManifestError(
                f"pretraining is a list of at most {_MOST_DATA_SETS} names of data sets."
            )
        return [_text(name, item, _LONGEST_NAME, required=True) for item in value]
    return _text(name, value, _MOST[name], required=name in _REQUIRED)


def _text(name: str, value: Any, most: int, *, required: bool) -> str:
    if not isinstance(value, str):
        raise ManifestError(f"{name} is a text, not a {type(value).__name__}.")
    words = value.strip()
    if len(words) > most or (required and not words):
        raise ManifestError(f"{name} has {len(words)} letters; expected {int(required)} to {most}.")
    if any(not (letter.isprintable() or letter in "\n\t") for letter in words):
        raise ManifestError(f"{name} holds control characters. Write it without.")
    return words
