"""What an answer of a server means: which exception, and whether to ask again."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from ..benchmark.errors import (
    AccessError,
    ConflictError,
    IntakeError,
    QuotaError,
    ServerError,
    StorageError,
    TomoprobeError,
    UnknownNameError,
)

MOST_WAIT = 120.0
"""Longest Retry-After, in seconds, that is waited for: a rate limit. A quota that comes back
tomorrow is an error that says so."""

LATER = frozenset({429, 502, 503, 504})
"""Statuses that may be gone on the next try."""


class Unreached(ServerError):
    """No answer, or one that asks to come back later; a next try may help.

    Args:
        message: what happened.
        after: seconds until then, where the server said.
        arrived: whether the server may have done what was asked all the same.
    """

    def __init__(self, message: str, after: float | None = None, *, arrived: bool = False) -> None:
        super().__init__(message)
        self.after, self.arrived = after, arrived


def error_of(response: httpx.Response, base_url: str) -> TomoprobeError:
    """The exception for an answer that is not a success; its body has been read.

    Statuses 401 and 403 give an AccessError, 404 an UnknownNameError, 409 a ConflictError, 429 a
    QuotaError (`Unreached` where waiting is short), 507 a StorageError, 502, 503 and 504 are
    `Unreached`, other 4xx an IntakeError with the server's code, and the rest a ServerError.
    """
    status = response.status_code
    try:
        told = response.json()
    except ValueError:
        told = None
    told = told if isinstance(told, dict) else {}
    what, hint = str(told.get("error") or ""), str(told.get("hint") or "")
    message = f"{what} {hint}".strip()
    if not message:
        phrase = httpx.codes.get_reason_phrase(status) or "no standard status"
        message = f"{base_url} answers with {status} ({phrase}) and no reason."
    after = retry_after(response)
    if status in (401, 403):
        again = " Log in again: tomoprobe login." if status == 401 and not hint else ""
        return AccessError(message + again, status)
    if status == 404:
        return UnknownNameError(message)
    if status == 409:
        offset = told.get("offset")
        return ConflictError(message, offset if isinstance(offset, int) else None)
    if status == 429 and (after is None or after > MOST_WAIT):
        return QuotaError(message, after)
    if status in LATER:
        return Unreached(message, min(after or 0.0, MOST_WAIT), arrived=status in (502, 504))
    if status == 507:
        return StorageError(message)
    if 400 <= status < 500:
        code = str(told.get("code") or f"http-{status}")
        stage = str(told.get("stage") or "upload")
        return IntakeError(code, what or message, stage=stage, hint=hint)
    if 300 <= status < 400:
        return ServerError(
            f"{base_url} sends us elsewhere ({status}), and a token is for one server only. Give "
            "the address as the browser shows it: tomoprobe login."
        )
    return ServerError(f"{message} This is a fault of the server: tell its operator.")


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of the header Retry-After, which holds a number or a date; None without one.

    >>> retry_after(httpx.Response(429, headers={"Retry-After": "7"}))
    7.0
    """
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def checked_address(base_url: str) -> str:
    """The address of a server without a final slash.

    Raises:
        ServerError: it is no address, or holds what does not belong there.

    >>> checked_address("https://board.example.org/")
    'https://board.example.org'
    """
    parts = urlsplit(base_url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServerError(
            f"'{base_url}' is not the address of a server. Expected e.g. https://board.example.org."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ServerError(
            "The address of a server has no user, password or parameters. Expected e.g. "
            "https://board.example.org."
        )
    return base_url.strip().rstrip("/")


def unencrypted(base_url: str) -> bool:
    """Whether a token would cross a network in plain sight.

    >>> unencrypted("http://board.example.org"), unencrypted("http://127.0.0.1:8000")
    (True, False)
    """
    parts = urlsplit(base_url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")
