"""How many bytes a request may have: none is read into memory or onto the disk before."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .configuration import Configuration

PLAIN_BYTES = 1 << 20
"""Of a request that sends no file: a manifest and a few fields."""

DRAIN_BYTES = 64 << 20
DRAIN_S = 5.0
"""How much of a refused body is thrown away, and for how long, before the line is cut."""


class BodyLimits:
    """An ASGI wrapper that breaks off bodies which are too long, with 413."""

    def __init__(self, app: ASGIApp, configuration: Configuration) -> None:
        self._app = app
        self._form = configuration.form_upload_bytes + PLAIN_BYTES
        self._chunk = configuration.chunk_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._most(scope)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            raise _too_long(most)
        had = 0

        async def counted() -> Message:
            nonlocal had
            message = await receive()
            had += len(message.get("body", b""))
            if had > most:
                raise _too_long(most)
            return message

        await self._app(scope, counted, send)

    def _most(self, scope: Scope) -> int:
        if scope["method"] == "PATCH" and "/uploads/" in scope["path"]:
            return self._chunk
        if scope["method"] == "POST" and scope["path"] == "/submit":
            return self._form
        return PLAIN_BYTES


def _too_long(most: int) -> HTTPException:
    return HTTPException(413, f"The request has more than {most} bytes, which is too long here.")


class Drained:
    """An ASGI wrapper that reads what is left of a body before a refusal is sent.

    A connection that is closed while bytes are on their way is reset, and the sender may never see
    the answer that tells him why.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        more = True

        async def noted() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def after(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                had = 0
                with suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_S):
                        while more and had < DRAIN_BYTES:
                            had += len((await noted()).get("body", b""))
            await send(message)

        await self._app(scope, noted, after)
