"""The pages of submitters and maintainers; each of them works without JavaScript."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from ..benchmark.errors import (
    AccessError,
    ConflictError,
    IntakeError,
    QuotaError,
    UnknownNameError,
)
from ..leaderboard import accounts, db, queue, quotas
from ..leaderboard.intake_records import Submission
from . import service, submit_form
from .api import event_stream
from .api_models import Answer, CardChanges, JobLogs, Me, NewReport
from .browser_sessions import (
    Visitor,
    check_origin,
    clear_cookie,
    cookie_name,
    set_cookie,
    visitor_of,
)
from .form_pages import FormPages, checked, page_of_ours, text_of
from .problems import told
from .service import Site

Id = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
Sha = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Path(ge=1, lt=1 << 31)]

PATHS = ("/login", "/logout", "/account", "/submit", "/submissions", "/report", "/maintain")
"""Where these pages are: whoever is not logged in there is sent to the login."""

_CARD_TEXTS = ("title", "authors", "license", "source", "citation", "note")

_AUDIT_SHOWN = 200

_Known = (IntakeError, ConflictError, QuotaError, UnknownNameError)
"""What a form says above itself, with what was typed still in it."""


def router(site: Site, environment: Environment) -> APIRouter:
    """The routes that answer with forms, or take them."""
    routes = APIRouter(include_in_schema=False)
    pages = FormPages(site, environment)
    routes.include_router(submit_form.router(pages))
    _login(routes, pages)
    _submissions(routes, pages)
    _reports(routes, pages)
    return routes


# --- login -------------------------------------------------------------------------------------


def _login(routes: APIRouter, pages: FormPages) -> None:
    site = pages.site

    @routes.get("/login")
    def login(request: Request, next: str = "") -> Response:
        try:
            visitor_of(site, request)
        except AccessError:
            return pages.page("login.html", None, next=page_of_ours(next), problem=None)
        return pages.redirect(page_of_ours(next))

    @routes.post("/login")
    async def log_in(request: Request) -> Response:
        check_origin(request, site.configuration)
        async with request.form(max_files=0, max_fields=10) as form:
            secret, where = text_of(form, "token"), page_of_ours(text_of(form, "next"))
        try:
            cookie, _ = await run_in_threadpool(accounts.open_session, site.engine, secret)
        except AccessError as error:
            problem = told(error)
            return pages.page("login.html", None, status=401, next=where, problem=problem)
        response = pages.redirect(where)
        set_cookie(response, site.configuration, cookie)
        return response

    @routes.post("/logout")
    async def log_out(request: Request) -> Response:
        async with pages.posted(request):
            cookie = request.cookies.get(cookie_name(site.configuration), "")
            await run_in_threadpool(accounts.close_session, site.engine, cookie)
        response = pages.redirect("/")
        clear_cookie(response, site.configuration)
        return response

    @routes.get("/account")
    def account(request: Request) -> Response:
        visitor = pages.visitor(request)
        user = visitor.identity.user
        return pages.page(
            "account.html",
            visitor,
            me=Me.of(visitor.identity, quotas.used(site.engine, user)),
            tokens=accounts.tokens(site.engine, user.name),
        )

    @routes.post("/account/tokens/{id}/revoke")
    async def revoke_token(request: Request, id: Number) -> Response:
        async with pages.posted(request) as (visitor, _):
            await run_in_threadpool(_revoke, site, visitor, id)
        return pages.redirect("/account")


def _revoke(site: Site, visitor: Visitor, id: int) -> None:
    user = visitor.identity.user.name
    if id not in {token.id for token in accounts.tokens(site.engine, user)}:
        raise UnknownNameError(f"You have no token {id}.")
    accounts.revoke_token(site.engine, id, by=user)


# --- submissions -------------------------------------------------------------------------------


def _submissions(routes: APIRouter, pages: FormPages) -> None:
    site = pages.site

    @routes.get("/submissions")
    def submissions(request: Request, everybody: str = "") -> Response:
        visitor = pages.visitor(request)
        found = service.visible_submissions(site, visitor.identity, bool(everybody))
        return pages.page("submissions.html", visitor, found=found, everybody=bool(everybody))

    @routes.get("/submissions/{id}")
    def submission(request: Request, id: Id) -> Response:
        visitor = pages.visitor(request)
        return _submission(pages, visitor, service.visible(site, visitor.identity, id))

    @routes.get("/submissions/{id}/events")
    async def events(request: Request, id: Id) -> Response:
        visitor = await run_in_threadpool(pages.visitor, request)
        return await event_stream(
            site, request, visitor.identity, id, lambda: visitor_of(site, request).identity
        )

    @routes.post("/submissions/{id}/{action}")
    async def act(request: Request, id: Id, action: str) -> Response:
        known = {
            "cancel": service.cancel,
            "withdraw": service.withdraw,
        }
        async with pages.posted(request, "submit") as (visitor, form):
            if action == "card":
                return await run_in_threadpool(_edit, pages, visitor, id, form)
            if action not in known:
                raise UnknownNameError.of("action", action[:80], [*known, "card"])
            await run_in_threadpool(known[action], site, visitor.identity, id)
        return pages.redirect(f"/submissions/{id}")

    @routes.get("/submissions/{id}/card")
    def card(request: Request, id: Id) -> Response:
        visitor = pages.visitor(request, "submit")
        found = service.visible(site, visitor.identity, id)
        return _card(pages, visitor, found, service.card_of(site, found), None)


def _submission(pages: FormPages, visitor: Visitor, found: Submission) -> Response:
    engine = pages.site.engine
    jobs = queue.jobs(engine, found.id)
    return pages.page(
        "submission.html",
        visitor,
        found=found,
        jobs=jobs,
        logs=[JobLogs.of(job) for job in jobs if job.log or job.code],
        place=queue.place(engine, found.id) if found.active else None,
        edits=queue.edits(engine, found.id),
        card=service.card_of(pages.site, found),
        shown=found.model_sha in {model.model_sha for model in db.models(db.public(engine))},
        mine=found.user_id == visitor.identity.user.id,
    )


def _card(
    pages: FormPages, visitor: Visitor, found: Submission, card: Any, problem: Any
) -> Response:
    return pages.page(
        "card.html",
        visitor,
        status=problem.status if problem else 200,
        found=found,
        card=card,
        edits=queue.edits(pages.site.engine, found.id),
        problem=problem,
    )


def _edit(pages: FormPages, visitor: Visitor, id: str, form: FormData) -> Response:
    found = service.visible(pages.site, visitor.identity, id)
    before = service.card_of(pages.site, found)
    typed: dict[str, Any] = {name: text_of(form, name) for name in _CARD_TEXTS}
    typed["pretraining"] = [line.strip() for line in text_of(form, "pretraining").splitlines()]
    typed["pretraining"] = [line for line in typed["pretraining"] if line]
    try:
        changed = {k: v for k, v in typed.items() if v != before.get(k)}
        asked = checked(CardChanges, changed)
        service.edit_card(pages.site, visitor.identity, id, asked)
    except _Known as error:
        return _card(pages, visitor, found, typed, told(error))
    return pages.redirect(f"/submissions/{id}")


# --- reports -----------------------------------------------------------------------------------


def _reports(routes: APIRouter, pages: FormPages) -> None:
    site = pages.site
    public = db.public(site.engine)

    def form_page(visitor: Visitor, sha: str, typed: Any, problem: Any = None) -> Response:
        model = db.model(public, sha)
        rows = db.rows(public, models=[sha])
        return pages.page(
            "report_model.html",
            visitor,
            status=problem.status if problem else 200,
            model=model,
            tasks=sorted({row.result.task for row in rows}),
            reports=queue.reports(site.engine, sha),
            typed=typed,
            problem=problem,
        )

    @routes.get("/report/{sha}")
    def report(request: Request, sha: Sha, kind: str = "dispute") -> Response:
        return form_page(pages.visitor(request), sha, {"kind": kind, "task": "", "text": ""})

    @routes.post("/report/{sha}")
    async def send(request: Request, sha: Sha) -> Response:
        async with pages.posted(request) as (visitor, form):
            typed = {name: text_of(form, name) for name in ("kind", "task", "text")}

            def store() -> Response:
                try:
                    asked = checked(
                        NewReport, {**typed, "task": typed["task"] or None, "model_sha": sha}
                    )
                    service.report(site, visitor.identity, asked)
                except _Known as error:
                    return form_page(visitor, sha, typed, told(error))
                return pages.redirect(f"/report/{sha}")

            return await run_in_threadpool(store)

    @routes.get("/maintain")
    def maintain(request: Request) -> Response:
        visitor = pages.visitor(request, "maintain")
        return pages.page(
            "maintain.html",
            visitor,
            reports=queue.reports(site.engine, state="open"),
            audit=accounts.audited(site.engine, _AUDIT_SHOWN),
            workers=queue.workers(site.engine),
            depths=sorted(queue.depths(site.engine).items()),
        )

    @routes.post("/maintain/reports/{id}")
    async def answer(request: Request, id: Number) -> Response:
        async with pages.posted(request, "maintain") as (visitor, form):
            given = {name: text_of(form, name) for name in ("state", "text")}
            asked = checked(Answer, given)
            by = visitor.identity.user.name
            await run_in_threadpool(queue.answer, site.engine, id, asked.state, asked.text, by)
        return pages.redirect("/maintain")
