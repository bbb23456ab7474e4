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

from ..benchmark.statistics import ESTIMANDS, FLAGS
from ..benchmark.types import Result
from . import printing
from .api import asked
from .board import TaskReport, board, is_evidence, model_report, task_report
from .cache import PageCache
from .charts import Point, Reference, dot_and_whisker
from .ranking import Cell, Standing, higher_is_better
from .settings import Settings
from .view import PARAMETERS, ParameterError

_HERE = Path(__file__).parent
STATIC = _HERE / "static"

MOST_POINTS = 40
"""Models in a chart; a longer one is no picture any more, and the table beside it has all."""

_REFERENCES = {
    "auroc": Reference(0.5, "guessing"),
    "r2": Reference(0.0, "predicting the mean"),
}

_METHODS = ["GET", "HEAD"]


def router(
    engine: Engine, kept: PageCache, settings: Settings, environment: Environment
) -> APIRouter:
    """The routes that answer with pages."""
    routes = APIRouter()

    def page(request: Request, names: Iterable[str], make: Callable[[], str]) -> Response:
        return kept.respond(request, asked(request, names), make)

    @routes.api_route("/", methods=_METHODS)
    def index(request: Request) -> Response:
        items = request.query_params.multi_items()

        def make() -> str:
            shown = board(engine, items, settings.suites)
            return environment.get_template("board.html").render(
                board=shown,
                estimands=_estimands(_cells(shown.shown)),
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
            )
            return environment.get_template("task.html").render(
                report=report,
                chart=_chart(report),
                most_points=MOST_POINTS,
                reference=_REFERENCES.get(report.standings.columns[0].metric),
                estimands=_estimands(_cells(report.shown)),
                notes=_notes(_cells(report.shown)),
                path=f"/tasks/{name}",
            )

        return page(request, ("version", "probe", "shots"), make)

    @routes.api_route("/models/{sha}", methods=_METHODS)
    def model(request: Request, sha: str) -> Response:
        def make() -> str:
            report = model_report(engine, sha)
            cells = [cell for scores in report.scores for cell in scores.cells]
            return environment.get_template("model.html").render(
                report=report,
                estimands=_estimands(cells),
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
        facts=_facts,
        marks=_marks,
    )
    environment.filters.update(
        metric=printing.metric_title,
        has_unit=printing.has_unit,
        plain=printing.plain,
        score=lambda r: printing.score_text(r.metric, r.score, r.low, r.high),
        spread=lambda r: printing.score_text(r.metric, r.spread, r.low, r.high),
        interval=lambda r: printing.interval_text(r.metric, r.score, r.low, r.high),
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        web_address=_web_address,
        breakable=_breakable,
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
    """Flags of the cell's row that become footnotes; "undefined" is written in the cell itself."""
    return tuple(flag for flag in cell.row.flags if flag != "undefined") if cell.row else ()


def _notes(cells: Iterable[Cell]) -> dict[str, tuple[str, str]]:
    """For each flag that is shown its letter and what it says to the reader."""
    flags = sorted({flag for cell in cells for flag in _marks(cell)})
    return {flag: (_letter(i), FLAGS.get(flag, flag)) for i, flag in enumerate(flags)}


def _estimands(cells: Iterable[Cell]) -> list[tuple[str, list[str]]]:
    """What the intervals shown are about, and for which tasks where they differ."""
    tasks: dict[str, set[str]] = {}
    for cell in cells:
        if cell.row is not None and cell.row.result.low is not None:
            tasks.setdefault(_protocol(cell.row.result), set()).add(cell.row.result.task)
    found = [(ESTIMANDS[key], sorted(tasks[key])) for key in ESTIMANDS if key in tasks]
    return found if len(found) > 1 else [(text, []) for text, _ in found]


def _protocol(result: Result) -> str:
    """The key of ``ESTIMANDS``: few-shot draws, repeated cross-validation, or one split."""
    if result.shots is not None:
        return "seeds"
    return "cv" if result.seed == "all" else "split"


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


def _chart(report: TaskReport) -> Markup:
    column = report.standings.columns[0]
    points = [
        Point(
            label=report.labels[standing.model_sha],
            score=row.result.score,
            low=row.result.low,
            high=row.result.high,
            ranked=cell.rank is not None,
            best=cell.best,
        )
        for standing in report.shown
        if (row := (cell := standing.cells[0]).row) is not None and row.result.score is not None
    ]
    if not points:
        return Markup()
    return dot_and_whisker(
        points[:MOST_POINTS],
        title=f"{printing.metric_title(column.metric)} on {column.task}, {report.probe} probe",
        metric=column.metric,
        unit=report.task.card.get("unit", ""),
        reference=_REFERENCES.get(column.metric),
    )
