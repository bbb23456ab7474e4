"""What happened, as one JSON object a line; no secret gets in."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..benchmark.errors import AccessError
from ..leaderboard.accounts import PREFIX
from .job_log import clean
from .rate_limits import network_of

_TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{20,}}")
_IN_ADDRESS = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}".encode())

_LONGEST = 2000
"""Letters of a path or message that are logged."""

logger = logging.getLogger("tomoprobe.requests")


class JsonLines(logging.Formatter):
    """A record as one line; what looks like a token is struck out."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: without_secrets(value) for key, value in told.items()})


def without_secrets(value: object) -> object:
    """Text without anything that looks like a token."""
    return _TOKEN.sub(f"{PREFIX}***", value) if isinstance(value, str) else value


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send the log of this process, uvicorn's included, to ``stream`` (standard error) as JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    ours = logging.getLogger("tomoprobe")
    for name in ("tomoprobe", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.propagate = False
        log.setLevel(level.upper())
    ours.setLevel(level.upper())
    # its lines hold whole addresses; ours replace them
    logging.getLogger("uvicorn.access").disabled = True


class RequestLogs:
    """An ASGI wrapper: a number for each request, a line about it, and no token in an address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = number
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = number
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            fields = {
                "request": number,
                "method": scope["method"],
                "path": clean(scope["path"])[:_LONGEST],  # without the query
                "route": route_of(scope),
                "status": status,
                "ms": round(1000 * (time.perf_counter() - began), 1),
                "address": network_of(scope),
                "user": scope["state"].get("user"),
            }
            level = logging.ERROR if status >= 500 else logging.INFO
            logger.log(level, "request", extra={"fields": fields})


class NoTokenInAddress:
    """An ASGI wrapper that refuses addresses with a token: they end up in logs and histories."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http" and _IN_ADDRESS.search(
            scope.get("raw_path", b"") + b"?" + scope["query_string"]
        ):
            raise AccessError(
                "The address holds a token. Addresses are kept in histories and logs: have this "
                "token revoked, and send the next one in the header Authorization only.",
                403,
            )
        await self._app(scope, receive, send)


def route_of(scope: Scope) -> str:
    """The route's own path, e.g. ``/submissions/{id}``: few, whatever visitors ask for."""
    route = scope.get("route")
    return getattr(route, "path", "") or "other"
