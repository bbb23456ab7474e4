"""Downloads of the board as it is shown, and /api/v1: everything that is stored, as JSON."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import Engine

from . import db
from .board import Board, board, unit_of
from .cache import PageCache
from .floors import Floor
from .probe_reports import ProbeReport, probe_reports
from .ranking import UNSAFE, Cell
from .records import StoredModel, StoredRow, StoredTask
from .settings import Settings
from .versions import Versions
from .view import PARAMETERS, ParameterError

ROWS_AT_ONCE = 1000
"""Rows of one answer of /api/v1/results where no limit is asked for: about half a megabyte."""

MOST_ROWS_AT_ONCE = 10_000

_RESULT_PARAMETERS = ("task", "probe", "model", "metric", "after", "limit")


def router(engine: Engine, cache: PageCache, settings: Settings) -> APIRouter:
    """The routes that answer with data."""
    routes = APIRouter()

    def answer(request: Request, names: Iterable[str], make: Callable[[], Any]) -> Response:
        return cache.respond(
            request, asked(request, names), lambda: _dumps(make()), "application/json"
        )

    @routes.get("/board.json")
    def board_json(request: Request) -> Response:
        items = request.query_params.multi_items()
        return answer(request, PARAMETERS, lambda: board_as_json(board(engine, items, settings)))

    @routes.get("/board.csv")
    def board_csv(request: Request) -> Response:
        items = request.query_params.multi_items()
        return cache.respond(
            request,
            asked(request, PARAMETERS),
            lambda: board_as_csv(board(engine, items, settings)),
            "text/csv",
            (("Content-Disposition", 'attachment; filename="tomoprobe-board.csv"'),),
        )

    @routes.get("/api/v1/results")
    def results(request: Request) -> Response:
        return answer(request, _RESULT_PARAMETERS, lambda: _results(engine, request, settings))

    @routes.get("/api/v1/models")
    def models(request: Request) -> Response:
        return answer(request, (), lambda: {"models": [_model(m) for m in db.models(engine)]})

    @routes.get("/api/v1/probes")
    def probes(request: Request) -> Response:
        return answer(
            request, (), lambda: {"probes": [_probe(p) for p in probe_reports(engine, settings)]}
        )

    @routes.get("/api/v1/tasks")
    def tasks(request: Request) -> Response:
        return answer(request, (), lambda: {"tasks": [_task(t) for t in db.tasks(engine)]})

    return routes


def asked(request: Request, names: Iterable[str]) -> tuple[object, ...]:
    """What a page depends on: its path and those parameters that it reads, in their order."""
    known = set(names)
    items = request.query_params.multi_items()
    return (request.url.path, tuple((k, v) for k, v in items if k in known and v))


# --- the board as it is shown ------------------------------------------------------------------


def board_as_json(shown: Board) -> dict[str, Any]:
    """Tasks and models in the order of the page, with scores in full precision."""
    columns = shown.standings.columns
    return {
        "view": shown.view.query(),
        "probe": shown.probe or None,
        "shots": shown.shots,
        "tasks": [
            {
                "name": task.name,
                "version": task.version,
                **{k: task.card.get(k) for k in ("title", "kind", "modality", "anatomy")},
                "unit": unit_of(task, column.metric),
                "probe": column.probe,
                "probe_version": column.probe_version,
                "metric": column.metric,
                "higher_is_better": column.higher_is_better,
                "evidence": column.evidence,
                "counts_for_mean_rank": counts,
                "superseded": shown.superseded.get(task.name),
                "floor": _floor(floor, shown.models),
            }
            for task, column, counts, floor in zip(
                shown.tasks, columns, shown.standings.counting, shown.floors.of, strict=True
            )
        ],
        "models": [
            {
                "place": standing.place,
                "model": shown.models[standing.model_sha].name,
                "model_sha": standing.model_sha,
                "mean_rank": standing.mean_rank,
                "tasks_done": standing.done,
                "tasks_counting": shown.standings.total,
                "scores": {
                    column.task: _cell(cell)
                    | {"below_floor": bool(shown.floors.under(standing.model_sha, cell, i))}
                    for i, (column, cell) in enumerate(zip(columns, standing.cells, strict=True))
                },
            }
            for standing in shown.shown
        ],
    }


def _floor(floor: Floor | None, models: Mapping[str, StoredModel]) -> dict[str, Any] | None:
    if floor is None:
        return None
    name = models[floor.model_sha].name
    return {"score": floor.score, "model": name, "model_sha": floor.model_sha}


def _cell(cell: Cell) -> dict[str, Any]:
    row, result = cell.row, cell.row.result if cell.row else None
    return {
        "score": result.score if result else None,
        "low": result.low if result else None,
        "high": result.high if result else None,
        "rank": cell.rank,
        "best": cell.best,
        "subset": result.subset if result else None,
        "n_test": result.n_test if result else None,
        "calibrated": row.calibrated if row else None,
        "flags": list(row.flags) if row else [],
        "origin": row.origin if row else None,
        "unsafe": row.unsafe if row else None,
        "superseded": cell.superseded,
        "note": cell.reason,
    }


def board_as_csv(shown: Board) -> str:
    """One line per model; four columns per task: score, low, high and note."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["place", "model", "model_sha", "mean_rank", "tasks_done", "tasks_counting"]
    for column in shown.standings.columns:
        name = f"{column.task}.{column.metric}"
        header += [name, f"{name}.low", f"{name}.high", f"{name}.note"]
    writer.writerow(map(_harmless, header))
    for standing in shown.shown:
        line: list[Any] = [
            standing.place,
            shown.models[standing.model_sha].name,
            standing.model_sha,
            standing.mean_rank,
            standing.done,
            shown.standings.total,
        ]
        for cell in standing.cells:
            result = cell.row.result if cell.row else None
            line += [result.score, result.low, result.high] if result else [None] * 3
            line.append("; ".join([cell.reason] * bool(cell.reason) + list(_flags(cell))))
        writer.writerow(map(_harmless, line))
    return out.getvalue()


def _flags(cell: Cell) -> tuple[str, ...]:
    if cell.row is None:
        return ()
    return (*cell.row.flags, *[UNSAFE] * cell.row.unsafe)


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets a leading apostrophe (OWASP)."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


# --- /api/v1 -------------------------------------------------------------------------------------


def _results(engine: Engine, request: Request, settings: Settings) -> dict[str, Any]:
    """Rows after the row ``after``; ``next`` is the ``after`` of the next page, null at the end."""
    given = request.query_params
    limit = _number("limit", given.get("limit") or str(ROWS_AT_ONCE), MOST_ROWS_AT_ONCE)
    found = db.rows(
        engine,
        tasks=given.getlist("task") or None,
        probe=given.get("probe") or None,
        models=given.getlist("model") or None,
        metric=given.getlist("metric") or None,
        after=_number("after", given.get("after") or "0", 2**62),
        limit=limit,
    )
    versions = Versions.of(db.tasks(engine), db.units(engine), settings)
    return {
        "results": [_result(row, versions) for row in found],
        "next": found[-1].id if len(found) == limit else None,
    }


def _number(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) > most:
        raise ParameterError(f"{name} is '{text}', but a whole number up to {most} is expected.")
    return int(text)


def _result(row: StoredRow, versions: Versions) -> dict[str, Any]:
    return {
        "id": row.id,
        **row.result.as_dict(),
        "calibrated": row.calibrated,
        "flags": list(row.flags),
        "origin": row.origin,
        "unsafe": row.unsafe,
        "superseded": versions.superseded(row.result) or None,
        "added": row.added,
    }


def _model(model: StoredModel) -> dict[str, Any]:
    return {
        "model_sha": model.model_sha,
        "name": model.name,
        "added": model.added,
        "card": model.card,
        "manifest": model.manifest,
    }


def _probe(report: ProbeReport) -> dict[str, Any]:
    known = report.known
    return {
        "name": report.name,
        "version": known.version,
        "title": known.title,
        "kinds": list(report.kinds),
        "standard_for": list(known.standard),
        "metric": known.metric or None,
        "on_request": known.on_request,
        "cost": known.cost,
        "budget": asdict(known.budget) if known.budget else None,
        "changes": [asdict(change) for change in known.changes],
        "tasks": [
            {"name": t.task.name, "version": t.task.version, "metric": t.metric, "models": t.models}
            for t in report.tasks
        ],
        "measured": [asdict(measured) for measured in report.measured],
    }


def _task(task: StoredTask) -> Mapping[str, Any]:
    return {"name": task.name, "version": task.version, "added": task.added, "card": task.card}


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
