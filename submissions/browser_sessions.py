"""Logged-in browsers: the cookie, and the proof that a form is one of ours.

A form is taken when the cookie is known, the form carries the text that belongs to it, and the
browser does not say that it comes from another site. Each of the three alone would do against
forged requests; the cookie is ``SameSite=Strict`` besides.
"""

import hmac
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from fastapi import Request, Response

from ..benchmark.errors import AccessError
from ..leaderboard import accounts
from ..leaderboard.intake_records import Identity, Scope
from .configuration import Configuration
from .service import Site

FIELD = "csrf"
"""Of every form that changes something."""
HEADER = "X-CSRF-Token"
"""The same for requests of our script."""

_NAME = "tomoprobe_session"


class Visitor(NamedTuple):
    """Who is logged in in this browser."""

    identity: Identity
    csrf: str

    def allows(self, scope: Scope) -> bool:
        """See `Identity.allows`."""
        return self.identity.allows(scope)


def cookie_name(configuration: Configuration) -> str:
    """Over https with the prefix by which browsers keep others from setting it (RFC 6265bis)."""
    return f"__Host-{_NAME}" if configuration.secure else _NAME


def set_cookie(response: Response, configuration: Configuration, value: str) -> None:
    """Keep the session in the browser, out of the reach of scripts and of other sites."""
    response.set_cookie(
        cookie_name(configuration),
        value,
        max_age=accounts.SESSION_S,
        path="/",
        secure=configuration.secure,
        httponly=True,
        samesite="strict",
    )


def clear_cookie(response: Response, configuration: Configuration) -> None:
    """Forget the session in the browser."""
    response.delete_cookie(
        cookie_name(configuration),
        path="/",
        secure=configuration.secure,
        httponly=True,
        samesite="strict",
    )


def visitor_of(site: Site, request: Request) -> Visitor:
    """Who asks.

    Raises:
        AccessError: nobody is logged in.
    """
    cookie = request.cookies.get(cookie_name(site.configuration), "")
    if not cookie:
        raise AccessError("You are not logged in. Log in with a token.")
    identity, csrf = accounts.session(site.engine, cookie)
    request.state.user = identity.user.name
    return Visitor(identity, csrf)


def require(visitor: Visitor, scope: Scope) -> None:
    """See that a visitor may do something.

    Raises:
        AccessError: 403, the token that the session was opened with does not allow it.
    """
    if not visitor.allows(scope):
        held = ", ".join(visitor.identity.scopes) or "none"
        raise AccessError(
            f"This needs the scope '{scope}'; you logged in with a token that has {held}. Log in "
            "with another token, or ask the operator for one.",
            403,
        )


def check_form(visitor: Visitor, given: str) -> None:
    """See that a form was made for this session.

    Raises:
        AccessError: 403, it was not.
    """
    if not hmac.compare_digest(given.encode(), visitor.csrf.encode()):
        raise AccessError(
            "This form was not made for your session, or is from an older one. Nothing was done: "
            "load the page again and repeat it.",
            403,
        )


def check_origin(request: Request, configuration: Configuration) -> None:
    """See that the browser does not name another site as the one that asks.

    Raises:
        AccessError: 403, it does.
    """
    headers: Mapping[str, str] = request.headers
    foreign = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is not None and not foreign:
        public = urlsplit(configuration.base_url).netloc
        foreign = urlsplit(origin).netloc not in {headers.get("host", ""), public} - {""}
    if foreign:
        raise AccessError(
            "This request comes from another site. Nothing was done: use the forms of this one.",
            403,
        )
