"""/api/v1 for submitters: uploads, submissions, cards, reports, and the OpenAPI document.

Who asks is told by ``Authorization: Bearer`` and by nothing else. No model is parsed here: the site
authenticates, reserves quota, streams to disk and reads headers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect

from ..benchmark.errors import AccessError, ConflictError
from ..leaderboard import accounts, db, queue, quotas, uploads
from ..leaderboard.intake_records import Identity, Scope
from . import receiving, service
from .api_examples import with_examples
from .api_models import (
    Answer,
    CardChanges,
    CardEdit,
    Edits,
    JobLogs,
    Logs,
    Me,
    NewReport,
    NewSubmission,
    NewUpload,
    Problem,
    Reports,
    ReportState,
    Submissions,
    SubmissionState,
    UploadState,
)
from .service import Site

PREFIX = "/api/v1"

_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="As `tomoprobe users` printed it once. Never in an address.",
)

Id = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", description="16 hexadecimal digits")]
Sha = Annotated[str, Query(pattern=r"^[0-9a-f]{64}$", description="identity of a model")]
Offset = Annotated[
    int, Header(alias="Upload-Offset", ge=0, lt=1 << 53, description="where the chunk starts")
]
Number = Annotated[int, Path(ge=1, lt=1 << 31)]

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request makes no sense."},
    401: {"model": Problem, "description": "No valid token."},
    403: {"model": Problem, "description": "The token does not allow this."},
    404: {"model": Problem, "description": "There is none, or it is somebody else's."},
    409: {"model": Problem, "description": "Not in this state; `offset` says where to go on."},
    413: {"model": Problem, "description": "Too many bytes."},
    422: {"model": Problem, "description": "Refused, with a code and what to do."},
    429: {"model": Problem, "description": "Quota or rate; `Retry-After` where waiting helps."},
    507: {"model": Problem, "description": "The disk of the server is full."},
}


def _holder(scope: Scope) -> Callable[..., Identity]:
    """What gives the holder of the token that a request brings, if it allows the scope."""

    def identified(
        request: Request,
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> Identity:
        if given is None:
            raise AccessError("A token is expected in the header Authorization: Bearer TOKEN.")
        found = accounts.authenticate(request.app.state.site.engine, given.credentials, scope)
        request.state.user = found.user.name
        return found

    return identified


Reader = Annotated[Identity, Depends(_holder("read"))]
Submitter = Annotated[Identity, Depends(_holder("submit"))]
Maintainer = Annotated[Identity, Depends(_holder("maintain"))]


def router(site: Site) -> APIRouter:
    """The routes below /api/v1 that belong to submissions."""
    routes = APIRouter(prefix=PREFIX, responses=_PROBLEMS)

    def shown(upload: Any) -> UploadState:
        return UploadState.of(upload, site.configuration.chunk_bytes)

    # --- uploads ---------------------------------------------------------------------------------

    @routes.post("/uploads", status_code=201, tags=["uploads"])
    def open_upload(asked: NewUpload, who: Submitter) -> UploadState:
        """Announce a file. Announcing it again gives the upload that is under way."""
        return shown(
            receiving.announce(
                site.engine,
                site.store,
                site.configuration,
                who,
                asked.kind,
                asked.size,
                asked.sha256,
            )
        )

    @routes.get("/uploads/{id}", tags=["uploads"])
    def get_upload(id: Id, who: Submitter) -> UploadState:
        """How far an upload is."""
        return shown(uploads.get(site.engine, id, who))

    @routes.patch(
        "/uploads/{id}",
        tags=["uploads"],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def send_chunk(id: Id, offset: Offset, request: Request, who: Submitter) -> UploadState:
        """Send a chunk. It counts when it has arrived whole; the last one has the file checked."""
        return shown(
            await receiving.receive(
                site.engine,
                site.store,
                who,
                id,
                offset,
                body_of(request),
                site.configuration.chunk_bytes,
            )
        )

    @routes.delete("/uploads/{id}", status_code=204, tags=["uploads"])
    def delete_upload(id: Id, who: Submitter) -> Response:
        """Delete the file; its bytes are given back."""
        receiving.discard(site.engine, site.store, uploads.get(site.engine, id, who))
        return Response(status_code=204)

    # --- submissions -----------------------------------------------------------------------------

    @routes.post("/submissions", status_code=201, tags=["submissions"])
    def submit(asked: NewSubmission, who: Submitter) -> SubmissionState:
        """Submit a model: a manifest, and the file that it names."""
        return service.state_of(site, service.submit(site, who, asked))

    @routes.get("/submissions", tags=["submissions"])
    def submissions(
        who: Reader,
        everybody: Annotated[bool, Query(description="of all users; for maintainers")] = False,
    ) -> Submissions:
        """One's own, newest first."""
        found = service.visible_submissions(site, who, everybody)
        return Submissions(submissions=[service.state_of(site, s, details=False) for s in found])

    @routes.get("/submissions/{id}", tags=["submissions"])
    def submission(id: Id, who: Reader) -> SubmissionState:
        """State, reason, place in the queue and units of work."""
        return service.state_of(site, service.visible(site, who, id))

    @routes.get("/submissions/{id}/logs", tags=["submissions"])
    def logs(id: Id, who: Reader) -> Logs:
        """The last lines of each unit; private to the submitter and the maintainers."""
        service.visible(site, who, id)
        return Logs(id=id, logs=[JobLogs.of(job) for job in queue.jobs(site.engine, id)])

    @routes.get(
        "/submissions/{id}/events",
        tags=["submissions"],
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "The submission as JSON in `data:`, whenever it has changed.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            }
        },
    )
    async def follow(id: Id, request: Request, who: Reader) -> Response:
        """Server-sent events until nothing more happens by itself."""
        secret = request.headers["authorization"].partition(" ")[2].strip()
        return await event_stream(
            site, request, who, id, lambda: accounts.authenticate(site.engine, secret, "read")
        )

    @routes.post("/submissions/{id}/cancel", tags=["submissions"])
    def cancel(id: Id, who: Submitter) -> SubmissionState:
        """Stop what waits or runs; what is stored stays."""
        return service.state_of(site, service.cancel(site, who, id))

    @routes.post("/submissions/{id}/withdraw", tags=["submissions"])
    def withdraw(id: Id, who: Submitter) -> SubmissionState:
        """Take the rows off the board; they are not deleted."""
        return service.state_of(site, service.withdraw(site, who, id))

    @routes.patch("/submissions/{id}/card", tags=["submissions"])
    def edit_card(id: Id, asked: CardChanges, who: Submitter) -> SubmissionState:
        """Change the prose of a card; the history stays."""
        return service.state_of(site, service.edit_card(site, who, id, asked))

    @routes.get("/submissions/{id}/card", tags=["submissions"])
    def card_history(id: Id, who: Reader) -> Edits:
        """What was changed in the card, when and by whom."""
        service.visible(site, who, id)
        return Edits(edits=[CardEdit.of(edit) for edit in queue.edits(site.engine, id)])

    # --- the rest --------------------------------------------------------------------------------

    @routes.get("/me", tags=["account"])
    def me(who: Reader) -> Me:
        """Whose token this is, and what is left of the quotas."""
        return Me.of(who, quotas.used(site.engine, who.user))

    @routes.post("/reports", status_code=201, tags=["reports"])
    def report(asked: NewReport, who: Reader) -> ReportState:
        """Dispute the rows of a model, or say that it has seen test data."""
        return ReportState.of(service.report(site, who, asked))

    @routes.get("/reports", tags=["reports"])
    def reports(model_sha: Sha) -> Reports:
        """What was reported about a model, and what became of it."""
        db.model(db.public(site.engine), model_sha)  # what is hidden is as unknown as what is not
        found = queue.reports(site.engine, model_sha)
        return Reports(reports=[ReportState.of(each) for each in found])

    @routes.post("/reports/{id}/answer", tags=["reports"])
    def answer(id: Number, asked: Answer, who: Maintainer) -> ReportState:
        """Decide about a report; for maintainers."""
        by = who.user.name
        return ReportState.of(queue.answer(site.engine, id, asked.state, asked.text, by))

    @routes.get("/openapi.json", include_in_schema=False)
    def openapi() -> JSONResponse:
        return JSONResponse(document(routes, site))

    return routes


def document(routes: APIRouter, site: Site) -> dict[str, Any]:
    """The OpenAPI document, with an example for every body."""
    made = get_openapi(
        title="tomoprobe",
        version="1",
        summary="Submit frozen encoders and follow them.",
        routes=[route for route in routes.routes if isinstance(route, APIRoute)],
        servers=[{"url": site.configuration.base_url or site.settings.root or "/"}],
    )
    return with_examples(made)


SILENCE_S = 60.0
"""For how long a sender may say nothing in the middle of a chunk: it holds the upload's lock."""


async def body_of(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes.

    Raises:
        ConflictError: it broke off, or nothing came for too long.
    """
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                data = await anext(stream)
        except StopAsyncIteration:
            return
        except (ClientDisconnect, TimeoutError) as error:
            raise ConflictError("The chunk broke off; ask where to go on.") from error
        yield data


async def event_stream(
    site: Site, request: Request, who: Identity, id: str, again: Callable[[], Identity]
) -> Response:
    """The answer that sends events.

    Raises:
        UnknownNameError: not one that ``who`` may see.
        QuotaError: too many streams.
    """
    service.visible(site, who, id)
    stream = service.events(site, who, id, again, request.is_disconnected)
    first = await anext(stream)  # so that what it raises is still an answer

    async def sent() -> AsyncIterator[str]:
        yield first
        async for part in stream:
            yield part

    # no proxy may gather what is to be seen at once (nginx has a header for that)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(sent(), media_type="text/event-stream", headers=headers)
