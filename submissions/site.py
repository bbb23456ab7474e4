"""The whole site: the board, and what submitters, maintainers and monitors need.

No module that this one imports loads a model, and none may: see ``tests/test_operator.py``.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..benchmark.errors import AccessError, TomoprobeError
from ..leaderboard import db
from ..leaderboard import pages as board_pages
from ..leaderboard import site as board
from ..leaderboard.settings import Settings
from . import api, forms, monitoring, receiving, request_logs
from .body_limits import BodyLimits, Drained
from .configuration import Configuration
from .form_pages import STATIC, STATIC_PATH, FormPages
from .problems import Told, told
from .rate_limits import RateLimits
from .service import Site, Streams
from .upload_store import UploadStore

SWEEP_S = 600.0
"""Between two looks for files that have been kept for long enough."""

NAVIGATION = (("/submit", "Submit"), ("/submissions", "Submissions"), ("/account", "Account"))

logger = logging.getLogger("tomoprobe.site")


def create_site(
    engine: Engine, settings: Settings | None = None, configuration: Configuration | None = None
) -> FastAPI:
    """The board with everything around it, on a migrated database.

    Args:
        engine: from ``db.connect``.
        settings: of the board; title and address come from the configuration where it has them.
        configuration: of the operator.
    """
    configuration = configuration or Configuration()
    settings = settings or Settings()
    settings = replace(
        settings,
        title=configuration.title or settings.title,
        base_url=configuration.base_url or settings.base_url,
        navigation=NAVIGATION,
    )
    store = UploadStore(configuration.store_folder, configuration.free_bytes)
    site = Site(engine, settings, configuration, store, Streams())
    app = board.create_app(db.public(engine), settings)
    app.state.site = site
    environment = board_pages.templates(settings)
    # before the board's own files, whose mount would answer first
    app.router.routes.insert(0, Mount(STATIC_PATH, StaticFiles(directory=STATIC)))
    measures = monitoring.Measures(site)
    app.include_router(monitoring.router(site, measures))
    app.include_router(api.router(site))
    app.include_router(forms.router(site, environment))
    answers = Answers(FormPages(site, environment), environment)
    for kind in (TomoprobeError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answers.handle)
    # outermost first; the board's own wrapper, which adds headers, stands between the two
    app.user_middleware.insert(0, Middleware(request_logs.RequestLogs))
    app.user_middleware.insert(0, Middleware(monitoring.Measured, measures=measures))
    app.user_middleware += [
        Middleware(Drained),
        Middleware(Refusing, answers=answers),
        Middleware(request_logs.NoTokenInAddress),
        Middleware(RateLimits, configuration=configuration),
        Middleware(BodyLimits, configuration=configuration),
    ]
    return app


class Answers:
    """Errors as answers: JSON for programs, a page for people."""

    def __init__(self, pages: FormPages, environment: Environment) -> None:
        self._pages = pages
        self._environment = environment

    def handle(self, request: Request, error: Exception) -> Response:
        """The answer to an error; one that is a fault of ours is raised again."""
        found = told(error)
        if found is None:
            raise error
        path = request.url.path
        if path.startswith(("/api/", "/submit/uploads")) or path.endswith((".json", ".csv")):
            return JSONResponse(found.body, found.status, headers=dict(found.headers))
        asks = isinstance(error, AccessError) and found.status == 401
        if asks and request.method == "GET" and path.startswith(forms.PATHS):
            return self._pages.to_login(request)
        return HTMLResponse(self._page(found, path), found.status, headers=dict(found.headers))

    def _page(self, found: Told, path: str) -> str:
        text = f"{found.problem.error} {found.problem.hint}".strip()
        if found.problem.code == "not-found" and found.problem.error == "Not Found.":
            text = f"There is no page at {path}. The board lists every task and model."
        return board_pages.message(self._environment, found.title, text)


class Refusing:
    """An ASGI wrapper that answers what the wrappers inside it raise."""

    def __init__(self, app: ASGIApp, answers: Answers) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except (TomoprobeError, HTTPException) as error:
            if begun:
                raise
            response = self._answers.handle(Request(scope), error)
            # what is left of the body is not read: the connection cannot be used again
            response.headers["Connection"] = "close"
            await response(scope, receive, send)


# --- the server --------------------------------------------------------------------------------


def serve(
    url: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings | None = None,
    configuration: Configuration | None = None,
) -> None:
    """Serve the database at ``url`` until interrupted.

    Args:
        url: of SQLAlchemy; migrated first, or created.
        host: to listen on; the default is reached from this machine only.
        port: to listen on.
        settings: of the board.
        configuration: of the operator.

    Raises:
        StorageError: the database cannot be used.
    """
    import uvicorn  # here, because tests of the site do without a server

    configuration = configuration or Configuration.from_environment()
    engine = db.connect(url)
    db.migrate(engine)
    request_logs.configure(configuration.log_level)
    stop = threading.Event()
    store = UploadStore(configuration.store_folder, configuration.free_bytes)
    sweeper = threading.Thread(target=_sweep, args=(engine, store, stop), daemon=True)
    sweeper.start()
    try:
        uvicorn.run(
            create_site(engine, settings, configuration),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(configuration.trusted_proxies),
            forwarded_allow_ips=list(configuration.trusted_proxies),
            # streams of events end with their visitor, not with us: they are not waited for
            timeout_graceful_shutdown=5,
        )
    finally:
        stop.set()


def _sweep(engine: Engine, store: UploadStore, stop: threading.Event) -> None:
    while True:
        try:
            for name in receiving.sweep(engine, store):
                logger.info("deleted", extra={"fields": {"file": name}})
        except TomoprobeError as error:
            logger.warning("sweep failed: %s", error)
        if stop.wait(SWEEP_S):
            return
