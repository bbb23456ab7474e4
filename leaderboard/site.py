"""The application: routes, errors as pages, headers, and the server."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy import Engine
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..benchmark.errors import StorageError, TomoprobeError, UnknownNameError
from . import api, db, pages
from .cache import PageCache
from .settings import Settings
from .view import ParameterError

__all__ = ["Settings", "create_app", "serve"]

HEADERS = {
    # Nothing is loaded from elsewhere, nothing runs that is not a file of ours, and nobody frames
    # the site: a model's name that got past the escaping would still be dead text.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}

_FOR_EVER = "public, max-age=31536000, immutable"
"""For files that are asked for by their hash."""


def create_app(engine: Engine, settings: Settings | None = None) -> FastAPI:
    """The site on a migrated database.

    Args:
        engine: from ``db.connect``.
        settings: of the operator.
    """
    settings = settings or Settings()
    engine = db.public(engine)  # no page can show what is withdrawn or under embargo
    # FastAPI's own pages of documentation load scripts from a CDN
    app = FastAPI(title="tomoprobe", docs_url=None, redoc_url=None, openapi_url=None)
    kept = PageCache(lambda: db.state(engine))
    environment = pages.templates(settings)
    app.include_router(pages.router(engine, kept, settings, environment))
    app.include_router(api.router(engine, kept, settings))
    app.mount("/static", StaticFiles(directory=pages.STATIC), name="static")

    @app.get("/healthz")
    def healthz() -> Response:
        db.state(engine)
        return PlainTextResponse("ok")

    def refuse(request: Request, status: int, title: str, text: str) -> Response:
        if request.url.path.startswith("/api/") or request.url.path.endswith((".json", ".csv")):
            return JSONResponse({"error": text}, status)
        return HTMLResponse(pages.message(environment, title, text), status)

    @app.exception_handler(TomoprobeError)
    def explained(request: Request, error: TomoprobeError) -> Response:
        if isinstance(error, ParameterError):
            return refuse(request, 400, "The board does not know that", str(error))
        if isinstance(error, UnknownNameError):
            return refuse(request, 404, "Not found", str(error))
        if isinstance(error, StorageError):
            return refuse(request, 503, "The database cannot be read", str(error))
        raise error

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            text = f"There is no page at {request.url.path}. The board lists every task and model."
            return refuse(request, 404, "Not found", text)
        return refuse(request, error.status_code, error.detail, f"{error.detail}.")

    app.add_middleware(_Headers)
    return app


class _Headers:
    """Adds ``HEADERS`` to every answer; a plain ASGI wrapper, which costs next to nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        by_hash = scope["path"].startswith("/static/") and scope["query_string"]

        async def with_headers(part: Message) -> None:
            if part["type"] == "http.response.start":
                headers = MutableHeaders(scope=part)
                headers.update(HEADERS)
                if by_hash and part["status"] == 200:
                    headers["Cache-Control"] = _FOR_EVER
            await send(part)

        await self._app(scope, receive, with_headers)


def serve(
    url: str, host: str = "127.0.0.1", port: int = 8000, settings: Settings | None = None
) -> None:
    """Serve the database at ``url`` until interrupted.

    Args:
        url: of SQLAlchemy; migrated first, or created.
        host: to listen on; the default is reached from this machine only.
        port: to listen on.
        settings: of the operator.

    Raises:
        StorageError: the database cannot be used.
    """
    import uvicorn  # here, because tests of the site do without a server

    engine = db.connect(url)
    db.migrate(engine)
    uvicorn.run(
        create_app(engine, settings), host=host, port=port, log_level="warning", server_header=False
    )
