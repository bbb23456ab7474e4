"""The HTML routes and what the templates need."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy import Engine

from ..benchmark.evaluate import SKIPPED
from ..benchmark.learning_curves import LabelShare
from ..benchmark.splits import CV_BELOW
from ..benchmark.statistics import ESTIMANDS, FLAGS
from ..benchmark.types import Result
from . import markdown, printing, sizes
from .api import asked
from .board import board, is_evidence, unit_of
from .cache import PageCache
from .comparisons import MOST_COMPARED, Comparer
from .details import Reader, details_of, of_class
from .figures import MOST_POINTS, REFERENCES, curves_figure, scores_figure
from .probe_reports import probe_report, probe_reports
from .protocols import budget_of
from .ranking import UNSAFE, Cell, Standing, higher_is_better
from .records import Json, StoredTask
from .reports import model_report, task_report
from .rivals import rivals_of
from .settings import Settings
from .view import PARAMETERS, ParameterError

_HERE = Path(__file__).parent
STATIC = _HERE / "static"

_METHODS = ["GET", "HEAD"]


def router(
    engine: Engine, kept: PageCache, settings: Settings, environment: Environment
) -> APIRouter:
    """The routes that answer with pages."""
    routes = APIRouter()
    comparer = Comparer(engine)
    reader = Reader(engine)

    def page(request: Request, names: Iterable[str], make: Callable[[], str]) -> Response:
        return kept.respond(request, asked(request, names), make)

    @routes.api_route("/", methods=_METHODS)
    def index(request: Request) -> Response:
        items = request.query_params.multi_items()

        def make() -> str:
            shown = board(engine, items, settings)
            return environment.get_template("board.html").render(
                board=shown,
                estimands=_estimands(_cells(shown.shown), shown.tasks, settings),
                notes=_notes(_cells(shown.shown)),
                path="/",
            )

        return page(request, PARAMETERS, make)

    @routes.api_route("/tasks/{name}", methods=_METHODS)
    def task(request: Request, name: str) -> Response:
        given = request.query_params

        def make() -> str:
            report = task_report(
                engine,
                name,
                _version(given.get("version", "")),
                given.get("probe", ""),
                given.get("shots", ""),
                settings,
            )
            cells = _cells(report.shown)
            if report.sizes is not None:
                cells += _cells(report.sizes.shown)
            rivals = rivals_of(report, given.get("against", ""), comparer)
            shares = [share for _, share in rivals.shares] if rivals is not None else []
            return environment.get_template("task.html").render(
                report=report,
                chart=scores_figure(report),
                curves=curves_figure(report),
                rivals=rivals,
                details=details_of(report, reader),
                against=given.get("against", ""),
                most_points=MOST_POINTS,
                most_compared=MOST_COMPARED,
                reference=REFERENCES.get(report.standings.columns[0].metric),
                estimands=_estimands(cells, [report.task], settings),
                notes=_notes(cells, shares),
                path=f"/tasks/{name}",
            )

        return page(request, ("version", "probe", "shots", "against"), make)

    @routes.api_route("/probes", methods=_METHODS)
    def probes(request: Request) -> Response:
        def make() -> str:
            return environment.get_template("probes.html").render(
                reports=probe_reports(engine, settings), path="/probes"
            )

        return page(request, (), make)

    @routes.api_route("/probes/{name}", methods=_METHODS)
    def probe(request: Request, name: str) -> Response:
        def make() -> str:
            return environment.get_template("probe.html").render(
                report=probe_report(engine, name, settings), path=f"/probes/{name}"
            )

        return page(request, (), make)

    @routes.api_route("/models/{sha}", methods=_METHODS)
    def model(request: Request, sha: str) -> Response:
        def make() -> str:
            report = model_report(engine, sha, settings)
            cells = [cell for scores in report.scores for cell in scores.cells]
            return environment.get_template("model.html").render(
                report=report,
                estimands=_estimands(cells, report.tasks.values(), settings),
                notes=_notes(cells),
                path=f"/models/{sha}",
            )

        return page(request, (), make)

    return routes


def message(environment: Environment, title: str, text: str) -> str:
    """A page that says what went wrong."""
    return environment.get_template("message.html").render(title=title, text=text, path="")


def templates(settings: Settings) -> Environment:
    """The templates, with everything escaped and every missing name an error."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        settings=settings,
        root=settings.root,
        asset=partial(_asset, settings.root),
        release=version("tomoprobe"),
        higher_is_better=higher_is_better,
        is_evidence=is_evidence,
        unit_of=unit_of,
        facts=_facts,
        marks=_marks,
    )
    environment.filters.update(
        metric=printing.metric_title,
        metric_in_full=printing.metric_in_full,
        plain=printing.plain,
        whole=printing.whole,
        of_class=of_class,
        duration=printing.duration,
        score=lambda r: printing.score_text(r.metric, r.score, r.low, r.high),
        spread=lambda r: printing.score_text(r.metric, r.spread, r.low, r.high),
        interval=lambda r: printing.interval_text(r.metric, r.score, r.low, r.high),
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        size=sizes.size_in_words,
        share=sizes.share_text,
        share_interval=sizes.share_interval,
        signed=printing.signed_text,
        between=printing.interval_text,
        chance=printing.p_text,
        web_address=_web_address,
        breakable=_breakable,
        markdown=markdown.as_html,
    )
    return environment


def _asset(root: str, name: str) -> str:
    """Address of a file in static/; its hash in the query lets browsers keep it for ever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"{root}/static/{name}?{digest}"


def _web_address(text: object) -> str:
    """The text where it may stand in a link; a card could hold ``javascript:`` or anything."""
    value = str(text)
    return value if value.startswith(("https://", "http://")) else ""


def _breakable(name: str) -> Markup:
    """A name of several words, which may break into lines between them."""
    return Markup("_<wbr>").join(name.split("_"))


def _version(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ParameterError(f"version is '{text}', but a whole number is expected.")
    return int(text) if text else None


def _cells(rows: Iterable[Standing]) -> list[Cell]:
    return [cell for standing in rows for cell in standing.cells]


def _marks(cell: Cell) -> tuple[str, ...]:
    """What becomes a footnote: the flags of the cell's row, and why it is superseded.

    "undefined" and why a size was skipped are written in the cell itself.
    """
    flags = cell.row.flags if cell.row else ()
    kept = tuple(f for f in flags if f != "undefined" and not f.startswith(SKIPPED))
    if cell.row is not None and cell.row.unsafe:
        kept = (*kept, UNSAFE)
    return (*kept, cell.reason) if cell.superseded else kept


def _notes(cells: Iterable[Cell], shares: Iterable[LabelShare] = ()) -> dict[str, tuple[str, str]]:
    """For each flag that is shown its letter and what it says to the reader."""
    flags = {flag for cell in cells for flag in _marks(cell)}
    flags |= {flag for share in shares for flag in share.flags}
    return {flag: (_letter(i), FLAGS.get(flag, flag)) for i, flag in enumerate(sorted(flags))}


def _estimands(
    cells: Iterable[Cell], tasks: Iterable[StoredTask], settings: Settings
) -> list[tuple[str, list[str]]]:
    """What the intervals shown are about, and for which tasks where they differ."""
    cards = {task.name: task.card for task in tasks}
    told: dict[str, set[str]] = {}
    for cell in cells:
        if cell.row is not None and cell.row.result.low is not None:
            result = cell.row.result
            for key in _protocols(result, cards.get(result.task, {}), settings):
                told.setdefault(key, set()).add(result.task)
    found = [(ESTIMANDS[key], sorted(told[key])) for key in ESTIMANDS if key in told]
    return found if len(found) > 1 else [(text, []) for text, _ in found]


def _protocols(result: Result, card: Json, settings: Settings) -> tuple[str, ...]:
    """Keys of ``ESTIMANDS``: training draws, repeated cross-validation, both, or one split."""
    # over draws the seed is "all" with and without cross-validation: only the card tells
    counts = card.get("counts", {})
    cv = "test" not in counts and counts.get("patients", CV_BELOW) < CV_BELOW
    if result.shots is None and budget_of(result.probe, settings) is None:
        if result.seed != "all":
            return ("split",)
        return ("cv",) if cv else ("seeds",)
    return ("seeds", "cv") if cv else ("seeds",)


def _letter(i: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    i += 1
    while i:
        i, rest = divmod(i - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def _facts(card: Mapping[str, Any], names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those fields of a card that say something, as (label, text)."""
    found = []
    for name, label in names:
        value = card.get(name)
        if value in (None, "", [], {}, ()):
            continue
        found.append((label, _in_words(value)))
    return found


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_in_words(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value))
    return f"{value:,}" if type(value) is int else str(value)
