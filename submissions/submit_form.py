"""The form that submits a model.

With JavaScript the file is sent in chunks before the form, and goes on after a broken line;
without, it comes with the form, in one piece and up to a smaller size.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from ..benchmark.errors import ConflictError, IntakeError, TomoprobeError
from ..leaderboard import queue, uploads
from ..leaderboard.intake_records import Upload, UploadKind
from . import receiving, service
from .api import body_of
from .api_models import NewSubmission, NewUpload, UploadState
from .browser_sessions import HEADER, Visitor, check_form, check_origin
from .form_pages import FormPages, checked, text_of, texts_of
from .manifest_text import MANIFEST_BYTES
from .problems import told

Id = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
Offset = Annotated[int, Header(alias="Upload-Offset", ge=0, lt=1 << 53)]

_KINDS: dict[str, UploadKind] = {
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    ".parquet": "predictions",
}

_READ_AT_ONCE = 1 << 20

_DEFAULT_SUITE = "core"
"""As of ``tomoprobe submit``: real tasks on which most models can be compared."""


def router(pages: FormPages) -> APIRouter:
    """The form, and where its script sends a file."""
    routes = APIRouter(include_in_schema=False)
    site = pages.site

    @routes.get("/submit")
    def form(request: Request) -> Response:
        return _page(pages, pages.visitor(request, "submit"), {})

    @routes.post("/submit")
    async def submit(request: Request) -> Response:
        async with pages.posted(request, "submit", files=2) as (visitor, form):
            typed = _typed(form)
            arrived: Upload | None = None
            try:
                typed["manifest"] = await _manifest(form) or typed["manifest"]
                arrived = await _file(pages, visitor, form)
                asked = _asked(typed, arrived.id if arrived else typed["upload"] or None)
                found = await run_in_threadpool(service.submit, site, visitor.identity, asked)
            except TomoprobeError as error:
                problem = told(error)
                if problem is None or problem.status in (401, 403):
                    raise
                if arrived is not None:
                    with suppress(ConflictError):  # the same file as of a submission that runs
                        await run_in_threadpool(receiving.discard, site.engine, site.store, arrived)
                return await run_in_threadpool(_page, pages, visitor, typed, problem)
        return pages.redirect(f"/submissions/{found.id}")

    def sender(request: Request) -> Visitor:
        check_origin(request, site.configuration)
        visitor = pages.visitor(request, "submit")
        check_form(visitor, request.headers.get(HEADER, ""))
        return visitor

    def shown(upload: Upload, status: int = 200) -> Response:
        state = UploadState.of(upload, site.configuration.chunk_bytes)
        return JSONResponse(state.model_dump(), status, headers={"Cache-Control": "no-store"})

    @routes.post("/submit/uploads")
    def open_upload(request: Request, asked: NewUpload) -> Response:
        who = sender(request).identity
        return shown(
            receiving.announce(
                site.engine,
                site.store,
                site.configuration,
                who,
                asked.kind,
                asked.size,
                asked.sha256,
            ),
            201,
        )

    @routes.get("/submit/uploads/{id}")
    def get_upload(request: Request, id: Id) -> Response:
        return shown(uploads.get(site.engine, id, sender(request).identity))

    @routes.patch("/submit/uploads/{id}")
    async def send_chunk(request: Request, id: Id, offset: Offset) -> Response:
        who = (await run_in_threadpool(sender, request)).identity
        chunk_bytes = site.configuration.chunk_bytes
        return shown(
            await receiving.receive(
                site.engine, site.store, who, id, offset, body_of(request), chunk_bytes
            )
        )

    return routes


def _page(
    pages: FormPages, visitor: Visitor, typed: dict[str, Any], problem: Any = None
) -> Response:
    settings, configuration = pages.site.settings, pages.site.configuration
    suite = _DEFAULT_SUITE if _DEFAULT_SUITE in settings.suites else ""
    empty = {"manifest": "", "tasks": [], "suite": suite, "probes": [], "upload": ""}
    return pages.page(
        "submit.html",
        visitor,
        status=problem.status if problem else 200,
        typed={**empty, "anonymous": False, "embargo_until": "", **typed},
        problem=problem,
        suites={name: len(tasks) for name, tasks in settings.suites.items()},
        tasks=sorted(settings.tasks),
        probes=sorted(settings.probes),
        last_embargo=queue.last_embargo(),
        largest=configuration.max_upload_bytes,
        largest_in_one_piece=configuration.form_upload_bytes,
    )


def _typed(form: FormData) -> dict[str, Any]:
    return {
        "manifest": text_of(form, "manifest"),
        "tasks": texts_of(form, "task"),
        "suite": text_of(form, "suite"),
        "probes": texts_of(form, "probe"),
        "anonymous": text_of(form, "anonymous") == "1",
        "embargo_until": text_of(form, "embargo_until"),
        "upload": text_of(form, "upload"),
    }


def _asked(typed: dict[str, Any], upload: str | None) -> NewSubmission:
    return checked(
        NewSubmission,
        {
            **typed,
            "upload": upload,
            "suite": typed["suite"] or None,
            "embargo_until": typed["embargo_until"] or None,
        },
    )


async def _manifest(form: FormData) -> str:
    """The text of a manifest that was chosen as a file; empty where none was.

    Raises:
        IntakeError: it is too large, or no text.
    """
    file = form.get("manifest_file")
    if not isinstance(file, UploadFile) or not file.filename:
        return ""
    raw = await file.read(MANIFEST_BYTES + 1)
    try:
        if len(raw) > MANIFEST_BYTES:
            raise ValueError
        return raw.decode("utf-8")
    except ValueError as error:
        raise IntakeError(
            "manifest-invalid",
            f"The file chosen as the manifest is no text of up to {MANIFEST_BYTES} bytes.",
            stage="upload",
            hint="Choose the manifest.toml that `tomoprobe pack` wrote.",
        ) from error


async def _file(pages: FormPages, visitor: Visitor, form: FormData) -> Upload | None:
    """The file that came with the form, as an upload; None where none did.

    Raises:
        IntakeError: it is of no kind that is taken, or is refused.
    """
    file = form.get("file")
    if not isinstance(file, UploadFile) or not file.filename or not file.size:
        return None
    # the name tells the kind and nothing else; it is never a name of ours
    kind = _KINDS.get(PurePath(file.filename).suffix.lower())
    if kind is None:
        raise IntakeError(
            "file-kind",
            f"Files are taken as {', '.join(_KINDS)}.",
            stage="upload",
            hint="Convert a checkpoint on your own machine: tomoprobe pack FILE.",
        )
    site, who = pages.site, visitor.identity
    digest = await run_in_threadpool(_sha256, file)
    upload = await run_in_threadpool(
        receiving.announce,
        site.engine,
        site.store,
        site.configuration,
        who,
        kind,
        file.size,
        digest,
    )
    if upload.state == "complete":
        return upload
    await file.seek(upload.received)
    return await receiving.receive(
        site.engine, site.store, who, upload.id, upload.received, _pieces(file), file.size
    )


def _sha256(file: UploadFile) -> str:
    digest = hashlib.sha256()
    while data := file.file.read(_READ_AT_ONCE):
        digest.update(data)
    file.file.seek(0)
    return digest.hexdigest()


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while data := await file.read(_READ_AT_ONCE):
        yield data
