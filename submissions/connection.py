"""HTTP to a tomoprobe server: one token, typed errors, and patience with bad lines."""

from __future__ import annotations

import json as json_text
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import httpx

from ..benchmark.errors import AccessError, ServerError, TomoprobeError
from .answers import Unreached, checked_address, error_of

TRIES = 10
"""Failures in a row without progress. With the delays below they span about four minutes, in which
a server restarts or a train leaves a tunnel."""

FIRST_TRIES = 3
"""The same before the first answer: an address with a typing error should not cost minutes."""

FIRST_DELAY, MOST_DELAY = 0.5, 60.0
"""Seconds between two tries; doubled each time, and a random share of up to a half left out so that
many clients do not come back at once."""

_TIMEOUT = httpx.Timeout(10.0, read=120.0, write=60.0)
"""Seconds. The answer to the last chunk waits until the server has read the whole file again."""

_MOST_ANSWER = 32 << 20
"""Bytes of one answer. A page of results is half a megabyte."""


class Backoff:
    """Waits between tries, longer each time, and gives up in the end.

    Args:
        tries: how many failures in a row are too many, asked after each.
        sleep: how to wait.
        told: hears what happened and how many seconds are waited.
    """

    def __init__(
        self,
        tries: Callable[[], int],
        sleep: Callable[[float], None],
        told: Callable[[str, float], None],
    ) -> None:
        self._tries, self._sleep, self._told = tries, sleep, told
        self._failures = 0

    def wait(self, error: TomoprobeError) -> None:
        """After a failure: sleep, or raise it when it was the last try.

        Raises:
            TomoprobeError: what was handed in.
        """
        self._failures += 1
        if self._failures >= self._tries():
            raise error
        after = getattr(error, "after", None)
        delay = min(MOST_DELAY, FIRST_DELAY * 2 ** (self._failures - 1)) * random.uniform(0.5, 1)
        if after is not None:
            delay = max(after, delay)
        self._told(str(error), delay)
        self._sleep(delay)

    def reset(self) -> None:
        """Something went well."""
        self._failures = 0


class Connection:
    """Requests to one server with one token, which goes into a header and nowhere else.

    Args:
        base_url: of the site, e.g. ``"https://board.example.org"``.
        token: of the user; None for what everybody may see.
        sleep: how to wait, in seconds.
        told: hears, while a request is tried again, what happened and how many seconds are waited.

    Raises:
        ServerError: the address is none.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        told: Callable[[str, float], None] = lambda what, seconds: None,
    ) -> None:
        self.base_url = checked_address(base_url)
        self._sleep, self._told = sleep, told
        self._reached = False
        headers = {"User-Agent": f"tomoprobe/{version('tomoprobe')}", "Accept": "application/json"}
        if token is not None:
            if not (token.isascii() and token.isprintable() and " " not in token):
                raise AccessError("The token holds a blank or a letter that no token has.")
            headers["Authorization"] = f"Bearer {token}"
        # never follows a redirect: the token is for this server
        self._http = httpx.Client(
            base_url=f"{self.base_url}/api/v1", headers=headers, timeout=_TIMEOUT
        )

    def __repr__(self) -> str:
        return f"Connection({self.base_url!r})"

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def backoff(self) -> Backoff:
        """Patience for one purpose."""
        return Backoff(lambda: TRIES if self._reached else FIRST_TRIES, self._sleep, self._told)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Mapping[str, str] | None = None,
        again: bool = True,
    ) -> Any:
        """The answer as JSON; tries again after failures that may pass.

        Args:
            method: of HTTP.
            path: below ``/api/v1``.
            json: body.
            query: parameters. Nothing secret.
            again: whether doing it twice is harmless. If not, a failure after which the server
                may have done it is raised at once.

        Raises:
            TomoprobeError: see `answers.error_of`; `Unreached` when all tries failed.
        """
        backoff = self.backoff()
        while True:
            try:
                return self.once(method, path, json=json, query=query)
            except Unreached as error:
                if error.arrived and not again:
                    raise
                backoff.wait(error)

    def once(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Mapping[str, str] | None = None,
        content: Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """As `request`, but one try.

        Args:
            method: of HTTP.
            path: below ``/api/v1``.
            json: body.
            query: parameters.
            content: body as bytes; say its Content-Length in the headers.
            headers: more of them.

        Raises:
            TomoprobeError: see `answers.error_of`; `Unreached` if a next try may help.
        """
        with self.stream(
            method, path, json=json, query=query, content=content, headers=headers
        ) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > _MOST_ANSWER:
                    raise ServerError(
                        f"{self.base_url} answers with more than {_MOST_ANSWER >> 20} MiB, which "
                        "no page of its API has. Is this the address of a tomoprobe server?"
                    )
        return self._parsed(response, bytes(body))

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Mapping[str, str] | None = None,
        content: Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read; errors as in `once`.

        Raises:
            TomoprobeError: see `answers.error_of`; `Unreached` if a next try may help.
        """
        try:
            with self._http.stream(
                method, path, json=json, params=query, content=content, headers=headers
            ) as response:
                self._reached = True
                if not response.is_success:
                    response.read()
                    raise error_of(response, self.base_url)
                yield response
        except httpx.TransportError as error:
            unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            raise Unreached(
                f"{self.base_url} {'is not reached' if unsent else 'does not answer any more'} "
                f"({_reason(error)}).",
                arrived=not unsent,
            ) from error
        except httpx.HTTPError as error:  # e.g. a body that cannot be decoded
            raise ServerError(
                f"{self.base_url} answers what cannot be understood ({_reason(error)})."
            ) from error

    def _parsed(self, response: httpx.Response, body: bytes) -> Any:
        if not body:
            return None
        try:
            return json_text.loads(body)
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("Content-Type", "no type")
            raise ServerError(
                f"{self.base_url} answers with {kind} where JSON is expected. Is this the address "
                "of a tomoprobe server, without a path below it?"
            ) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
