"""What all pages with forms share: who asks, what the form holds, and how a page is made."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import ChoiceLoader, Environment, FileSystemLoader
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from ..benchmark.errors import IntakeError
from ..leaderboard.intake_records import Scope
from .browser_sessions import FIELD, Visitor, check_form, check_origin, require, visitor_of
from .job_log import clean
from .service import Site
from .upload_store import StoreFullError

_HERE = Path(__file__).parent
STATIC = _HERE / "static"
STATIC_PATH = "/static/submissions"

_PRIVATE = {"Cache-Control": "no-store"}

_MOST_FIELDS = 1200
"""Of a form: every task is a box to tick."""


class FormPages:
    """Makes pages and reads forms.

    Args:
        site: what the routes share.
        environment: the templates of the board; those of the forms are added.
    """

    def __init__(self, site: Site, environment: Environment) -> None:
        self.site = site
        self._environment = environment
        own = FileSystemLoader(_HERE / "templates")
        loaders = [environment.loader, own] if environment.loader else [own]
        environment.loader = ChoiceLoader(loaders)
        environment.globals["static"] = f"{site.settings.root}{STATIC_PATH}"
        environment.filters.update(clean=clean, duration=duration, bytes=in_bytes)

    def page(
        self, name: str, visitor: Visitor | None, *, status: int = 200, **values: Any
    ) -> Response:
        """A page, which nobody but the visitor's browser keeps."""
        text = self._environment.get_template(name).render(visitor=visitor, path="", **values)
        return HTMLResponse(text, status, headers=_PRIVATE)

    def redirect(self, path: str) -> Response:
        """To a page of ours, by GET."""
        return RedirectResponse(self.site.settings.root + path, 303, headers=_PRIVATE)

    def to_login(self, request: Request) -> Response:
        """To the login, and from there back."""
        return self.redirect(f"/login?next={quote(request.url.path, safe='/')}")

    def visitor(self, request: Request, scope: Scope = "read") -> Visitor:
        """Who asks.

        Raises:
            AccessError: nobody is logged in, or with a token that does not allow this.
        """
        visitor = visitor_of(self.site, request)
        require(visitor, scope)
        return visitor

    @asynccontextmanager
    async def posted(
        self, request: Request, scope: Scope = "read", files: int = 0
    ) -> AsyncIterator[tuple[Visitor, FormData]]:
        """Who sent a form, and what it holds.

        Raises:
            AccessError: not logged in, not allowed, or not a form of ours.
            StoreFullError: there is no room for what comes with the form.
        """
        check_origin(request, self.site.configuration)
        visitor = await run_in_threadpool(self.visitor, request, scope)
        try:
            form = await request.form(max_files=files, max_fields=_MOST_FIELDS)
        except OSError as error:  # files wait in the system's temporary folder
            raise StoreFullError(
                "The server has no room for this form. Try again later, or tell its operator."
            ) from error
        try:
            check_form(visitor, text_of(form, FIELD))
            yield visitor, form
        finally:
            await form.close()


def text_of(form: FormData, name: str) -> str:
    """A field as text; empty where it is missing or a file."""
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


def texts_of(form: FormData, name: str) -> list[str]:
    """All values of a field that may come several times."""
    return [value for value in form.getlist(name) if isinstance(value, str) and value]


_Model = TypeVar("_Model", bound=BaseModel)


def checked(model: type[_Model], values: dict[str, Any]) -> _Model:
    """The fields of a form, by the rules of the API.

    Raises:
        IntakeError: one does not keep them.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'form'}: "
            f"{fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors(include_input=False, include_url=False)
        ]
        raise IntakeError(
            "invalid-form", f"{'; '.join(faults[:5])}.", stage="upload", hint=""
        ) from error


def page_of_ours(path: str) -> str:
    r"""A path to go on to after the login; the list of submissions where it leads elsewhere.

    >>> page_of_ours("/submit"), page_of_ours("//example.org/submit"), page_of_ours("/\\x.org")
    ('/submit', '/submissions', '/submissions')
    """
    parts = urlsplit(path)
    plain = path.startswith("/") and path.isprintable() and not parts.scheme and not parts.netloc
    return path if plain and not path.startswith("//") and "\\" not in path else "/submissions"


def duration(seconds: float | None) -> str:
    """In the largest unit that fits.

    >>> duration(5), duration(90), duration(7200), duration(None)
    ('5 s', '2 min', '2 h', '')
    """
    if seconds is None:
        return ""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def in_bytes(count: float) -> str:
    """In binary units.

    >>> in_bytes(999), in_bytes(8 << 20)
    ('999 B', '8.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
