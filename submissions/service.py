"""What submitters may do, whichever way they come: the API and the forms both call this."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from ..benchmark.errors import AccessError, IntakeError, QuotaError, UnknownNameError
from ..leaderboard import db, queue, uploads
from ..leaderboard.intake_records import Identity, Report, Submission
from ..leaderboard.settings import Settings
from . import declarations
from .api_models import CardChanges, NewReport, NewSubmission, SubmissionState
from .configuration import Configuration
from .upload_store import UploadStore

EVENTS_S = 600.0
"""How long one stream of events lasts; browsers and the client then open the next."""
EVENTS_POLL_S = 1.0
"""Between two looks at the database for one stream."""
KEEP_ALIVE_S = 15.0
"""Between two signs of life of a stream: below the patience of the usual proxies."""
MOST_STREAMS = 20
"""Of events, at a time and per user: each asks the database every second."""


class Site(NamedTuple):
    """What the routes share."""

    engine: Engine
    settings: Settings
    configuration: Configuration
    store: UploadStore
    streams: Streams

    def url_of(self, id: str) -> str:
        """Address of the page of a submission; relative where the public one is not known."""
        base = self.configuration.base_url or self.settings.root
        return f"{base}/submissions/{id}"


class Streams:
    """How many streams of events each user has open."""

    def __init__(self) -> None:
        self._open: Counter[int] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def one_more(self, user_id: int) -> Iterator[None]:
        """While a stream is open.

        Raises:
            QuotaError: there are too many.
        """
        with self._lock:
            if self._open[user_id] >= MOST_STREAMS:
                raise QuotaError(
                    f"You follow {MOST_STREAMS} submissions at once. Close some of the pages.",
                    KEEP_ALIVE_S,
                )
            self._open[user_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[user_id] -= 1
                self._open += Counter()  # forgets those at zero


# --- submissions -------------------------------------------------------------------------------


def submit(site: Site, identity: Identity, asked: NewSubmission) -> Submission:
    """Take a submission.

    Raises:
        AccessError, QuotaError, ConflictError, IntakeError, UnknownNameError: see `queue.submit`,
            `declarations`.
    """
    upload = None
    if asked.upload is not None:
        upload = uploads.stored(site.engine, asked.upload)
        if upload.user_id != identity.user.id:
            raise UnknownNameError(f"You have no upload '{asked.upload}'.")
    declaration = declarations.declared(asked.manifest, upload)
    return queue.submit(
        site.engine,
        identity,
        manifest_text=asked.manifest,
        name=declaration.name,
        kind=declaration.kind,
        tasks=declarations.chosen_tasks(asked.tasks, asked.suite, site.settings),
        probes=declarations.chosen_probes(asked.probes, site.settings),
        upload_id=asked.upload,
        anonymous=asked.anonymous,
        embargo_until=asked.embargo_until or None,
    )


def visible(site: Site, identity: Identity, id: str) -> Submission:
    """A submission of one's own, or any for a maintainer.

    Raises:
        UnknownNameError: none of that id, or another's: a stranger does not learn which.
    """
    found = queue.submission(site.engine, id)
    if found.user_id != identity.user.id and not identity.allows("maintain"):
        raise UnknownNameError(f"There is no submission '{id}'. `tomoprobe status` lists yours.")
    return found


def visible_submissions(site: Site, identity: Identity, everybody: bool) -> list[Submission]:
    """One's own, newest first; all of them for a maintainer who asks.

    Raises:
        AccessError: everybody's were asked for by somebody else.
    """
    if everybody and not identity.allows("maintain"):
        raise AccessError("Only maintainers see the submissions of everybody.", 403)
    user = None if everybody else identity.user.name
    return queue.submissions(site.engine, user, limit=_MOST_LISTED)


_MOST_LISTED = 500


def cancel(site: Site, identity: Identity, id: str) -> Submission:
    """Stop a submission that one may see."""
    visible(site, identity, id)
    return queue.cancel(site.engine, id, identity.user.name)


def withdraw(site: Site, identity: Identity, id: str) -> Submission:
    """Take the rows of a submission that one may see off the board."""
    visible(site, identity, id)
    return queue.withdraw(site.engine, id, identity.user.name)


def edit_card(site: Site, identity: Identity, id: str, changes: CardChanges) -> Submission:
    """Change the prose of a card.

    Raises:
        IntakeError: nothing is changed.
    """
    visible(site, identity, id)
    given = changes.model_dump(exclude_none=True)
    if not given:
        raise IntakeError(
            "no-change", "No field of the card is named.", stage="upload", hint="Name one."
        )
    return queue.edit_card(site.engine, id, identity.user.name, given)


CARD_FIELDS = ("title", "authors", "license", "pretraining", "source", "citation", "note")
"""What can be edited: everything else decides the features, or is the model's name."""


def card_of(site: Site, found: Submission) -> dict[str, Any]:
    """The prose of a card as it is now: as it was sent, and as it was edited since."""
    try:
        sent = tomllib.loads(found.manifest)
    except tomllib.TOMLDecodeError:  # was read when it came; a release may read it otherwise
        sent = {}
    card = {name: sent.get(name, [] if name == "pretraining" else "") for name in CARD_FIELDS}
    for edit in queue.edits(site.engine, found.id):
        card.update(edit.after)
    return card


def state_of(site: Site, found: Submission, details: bool = True) -> SubmissionState:
    """A submission as JSON, with its units and its place in the queue where they are asked for."""
    if not details:
        return SubmissionState.of(found, site.url_of(found.id))
    place = queue.place(site.engine, found.id) if found.active else None
    jobs = queue.jobs(site.engine, found.id)
    return SubmissionState.of(found, site.url_of(found.id), place, jobs)


# --- reports -----------------------------------------------------------------------------------


def report(site: Site, identity: Identity, asked: NewReport) -> Report:
    """Dispute rows of a model, or say that it has seen test data.

    Raises:
        UnknownNameError: no such model or task.
    """
    public = db.public(site.engine)
    db.model(public, asked.model_sha)
    if asked.task is not None:
        db.task(public, asked.task)
    return queue.report(
        site.engine,
        model_sha=asked.model_sha,
        kind=asked.kind,
        text=asked.text,
        task=asked.task,
        by=identity.user.id,
    )


# --- events ------------------------------------------------------------------------------------


async def events(
    site: Site,
    identity: Identity,
    id: str,
    again: Callable[[], Identity],
    gone: Callable[[], Awaitable[bool]],
) -> AsyncIterator[str]:
    """Server-sent events: the submission at once, and again whenever it has changed.

    Args:
        site: what the routes share.
        identity: who follows.
        id: of the submission.
        again: who follows now; raises where the token or session has ended meanwhile.
        gone: whether the listener has left.
    """
    last = ""
    began = told = time.monotonic()
    with site.streams.one_more(identity.user.id):
        yield "retry: 3000\n\n"
        while time.monotonic() - began < EVENTS_S and not await gone():
            found = await run_in_threadpool(_event, site, id, again)
            if found is None:
                return
            text = json.dumps(found)
            if text != last:
                yield f"event: state\ndata: {text}\n\n"
                last, told = text, time.monotonic()
            elif time.monotonic() - told > KEEP_ALIVE_S:
                yield ": still there\n\n"
                told = time.monotonic()
            if found["state"] not in _LIVE:
                return
            await asyncio.sleep(EVENTS_POLL_S)


_LIVE = ("queued", "checking", "evaluating")


def _event(site: Site, id: str, again: Callable[[], Identity]) -> Mapping[str, Any] | None:
    try:
        found = visible(site, again(), id)
    except (AccessError, UnknownNameError):
        return None  # ends the stream: whoever asks again is told why
    return state_of(site, found).model_dump()
