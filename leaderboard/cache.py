"""Rendered pages, kept until the database changes."""

import gzip
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock

from starlette.requests import Request
from starlette.responses import Response

PAGES = 256
"""How many are kept: a board of 200 models by 30 tasks is about 20 kB compressed."""

_LEVEL = 6  # zlib's own default: level 9 takes several times longer for about one per cent


@dataclass(frozen=True)
class _Page:
    etag: str
    body: bytes
    """gzip."""
    media_type: str
    headers: tuple[tuple[str, str], ...]


class PageCache:
    """Compressed pages by what was asked, dropped together when the state changes."""

    def __init__(self, state: Callable[[], Hashable], capacity: int = PAGES) -> None:
        """``state`` is asked for each request, so it has to be cheap."""
        self._state = state
        self._capacity = capacity
        self._lock = Lock()
        self._made_at: Hashable = None
        self._pages: OrderedDict[Hashable, _Page] = OrderedDict()

    def respond(
        self,
        request: Request,
        key: Hashable,
        render: Callable[[], str],
        media_type: str = "text/html",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Response:
        """The page under ``key``, rendered if need be; 304 where the visitor has it already."""
        state = self._state()
        page = self._find(key, state)
        if page is None:
            text = render().encode()
            page = _Page(
                etag=f'W/"{hashlib.sha256(text).hexdigest()[:32]}"',
                body=gzip.compress(text, _LEVEL, mtime=0),
                media_type=media_type,
                headers=headers,
            )
            # rendered from a state at least as new: the next change drops it all the same
            self._keep(key, state, page)
        common = {"ETag": page.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if page.etag in _tags(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=common)
        if "gzip" in request.headers.get("accept-encoding", ""):
            body, encoding = page.body, {"Content-Encoding": "gzip"}
        else:
            body, encoding = gzip.decompress(page.body), {}
        return Response(
            body, media_type=page.media_type, headers=common | encoding | dict(page.headers)
        )

    def _find(self, key: Hashable, state: Hashable) -> _Page | None:
        with self._lock:
            if state != self._made_at:
                self._pages.clear()
                self._made_at = state
            if key in self._pages:
                self._pages.move_to_end(key)
            return self._pages.get(key)

    def _keep(self, key: Hashable, state: Hashable, page: _Page) -> None:
        with self._lock:
            if state == self._made_at:
                self._pages[key] = page
                while len(self._pages) > self._capacity:
                    self._pages.popitem(last=False)


def _tags(header: str) -> set[str]:
    """The entity tags of If-None-Match, compared weakly (RFC 9110, 13.1.2)."""
    return {
        tag if tag.startswith("W/") else f"W/{tag}" for tag in map(str.strip, header.split(","))
    }
