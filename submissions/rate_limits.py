"""So many requests per minute, of one token and of one address."""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from threading import Lock

from starlette.types import ASGIApp, Receive, Scope, Send

from ..benchmark.errors import QuotaError
from .configuration import Configuration

MOST_KEPT = 10_000
"""Of tokens and addresses seen last; one that is forgotten starts anew, with a full bucket."""

_FREE = ("/static/", "/healthz", "/readyz", "/metrics", "/favicon.ico")
"""Not counted: files that browsers keep, and what watches the site."""

_LOCAL_PREFIX_BITS = 64  # of IPv6: what one household gets (RFC 6177)


class Buckets:
    """A bucket of tokens per key: full at first, filled at an even pace, one taken per request."""

    def __init__(self, per_minute: int, capacity: int = MOST_KEPT) -> None:
        self._per_minute = per_minute
        self._capacity = capacity
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = Lock()

    def take(self, key: str, now: float | None = None) -> float | None:
        """Take one; None, or in how many seconds there is one again."""
        moment = time.monotonic() if now is None else now
        with self._lock:
            left, since = self._kept.pop(key, (float(self._per_minute), moment))
            left = min(self._per_minute, left + (moment - since) * self._per_minute / 60)
            wait = None if left >= 1 else (1 - left) * 60 / self._per_minute
            self._kept[key] = (left - 1 if wait is None else left, moment)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
            return wait


class RateLimits:
    """An ASGI wrapper that answers 429 by raising ``QuotaError`` inside the application."""

    def __init__(self, app: ASGIApp, configuration: Configuration) -> None:
        self._app = app
        self._tokens = Buckets(configuration.requests_per_minute)
        self._addresses = Buckets(configuration.requests_per_minute_and_address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http" and not scope["path"].startswith(_FREE):
            wait = self._addresses.take(network_of(scope))
            secret = _secret_of(scope)
            if wait is None and secret is not None:
                wait = self._tokens.take(secret)
            if wait is not None:
                raise QuotaError(
                    "Too many requests in the last minute. Wait, then go on more slowly.",
                    math.ceil(wait),
                )
        await self._app(scope, receive, send)


def network_of(scope: Scope) -> str:
    """The visitor's address; of IPv6, the network, whose addresses are all one visitor's."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> _LOCAL_PREFIX_BITS << _LOCAL_PREFIX_BITS))
    return host


def _secret_of(scope: Scope) -> str | None:
    """A digest of the token that is sent along, whether it is one or not."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            return hashlib.sha256(value).hexdigest()
    return None
