"""What a run prints on stdout: its scores, in as many columns as the terminal has room for."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from ..leaderboard.printing import (
    NOTHING,
    interval_text,
    metric_title,
    plain,
    score_text,
    signed_text,
)
from ..leaderboard.ranking import higher_is_better
from ..leaderboard.records import StoredRow
from .dense_report import FOLDER
from .progress import progress
from .scores import FLOOR, Column, Line, RunScores, TaskScores, gather
from .terminal import out

if TYPE_CHECKING:
    from .runs import Ran
    from .session import Session

__all__ = ["print_address", "print_scores", "print_serve_hint", "print_summary", "progress"]


def print_scores(work: Session, ran: Ran) -> RunScores:
    """One table per task: models by score, probes as columns, paired differences to the floor.

    Returns:
        What was shown, for ``report.write_report``: comparing takes a while.
    """
    found = gather(work, ran)
    for scores in found.tasks:
        out.print(_fitting(scores))
        for line in _footnotes(scores):
            out.print(f"[dim]{escape(line)}[/dim]")
        out.print()
    if found.compared:
        out.print(
            f"[dim]{found.compared} minus {FLOOR}: paired on the same patients, with its own 95 % "
            "interval. * differs after Holm's adjustment over all differences shown.[/dim]"
        )
    for text in found.estimands:
        out.print(f"[dim]{text}[/dim]")
    complete = sum(not row.result.subset for row in found.rows)
    place = escape(work.shown_url)
    out.print(f"{len(found.rows)} rows ({complete} on complete data) are in {place}")
    return found


def _footnotes(scores: TaskScores) -> Iterator[str]:
    """What a reader of the table must know."""
    for number, text in scores.main_footnotes:
        yield f"{number}) {text}"
    for column in scores.columns:
        if skipped := scores.skipped(column.probe):
            sizes = ", ".join(str(size) for size, _ in skipped)
            yield f"{column.probe} could not be drawn at {sizes}: {scores.limit(column.probe)}"
    if not scores.opened.complete:
        yield (
            "Subset: an incomplete copy; these rows are marked and never ranked beside complete "
            "ones."
        )
    if scores.card.note:
        yield scores.card.note


# --- layout ------------------------------------------------------------------------------------

_UNBOUNDED = 10_000
"""Columns of a terminal on which everything fits: Rich measures no more than it has room for."""


def _fitting(scores: TaskScores) -> Table:
    """The first layout that fits, so that no interval ever breaks.

    Probes side by side; then with intervals below their scores; then probes below one another.
    """
    unbounded = out.options.update_width(_UNBOUNDED)
    layouts = [
        layout(scores, between)
        for layout in (_side_by_side, _below_one_another)
        for between in (" ", "\n")
    ]
    fitting = (t for t in layouts if Measurement.get(out, unbounded, t).maximum <= out.width)
    return next(fitting, layouts[-1])


def _side_by_side(scores: TaskScores, between: str) -> Table:
    """A column per probe, and the spread and difference of the first."""
    first = scores.columns[0].probe
    table = _table(scores)
    for column in scores.columns:
        head = "\n".join(filter(None, (column.probe, column.size, _own_metric(scores, column))))
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("spread", justify="right", no_wrap=True)
    gaps = scores.compared == first
    if gaps:
        minus = f"{first}{between}minus {FLOOR}"
        table.add_column(minus, justify="right", no_wrap=True)
    for line in scores.lines:
        cells = [_cell(scores, line.cells.get(column.probe), between) for column in scores.columns]
        difference = [_difference(line, scores.metric, between)] if gaps else []
        table.add_row(escape(line.model), *cells, _spread(line.cells.get(first)), *difference)
    return table


def _below_one_another(scores: TaskScores, between: str) -> Table:
    """A block of lines per probe."""
    table = _table(scores)
    table.padding, table.pad_edge = (0, 0, 0, 1), False  # 80 columns are enough then
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("spread", justify="right", no_wrap=True)
    if scores.compared:
        table.add_column(f"minus{between}{FLOOR}", justify="right", no_wrap=True)
    for column in scores.columns:
        told = " ".join(filter(None, (column.size, _own_metric(scores, column))))
        table.add_row(f"[bold]{column.probe}[/bold]", told)
        for line in scores.lines:
            row = line.cells.get(column.probe)
            cells = [_cell(scores, row, between), _spread(row)]
            if scores.compared == column.probe:
                cells.append(_difference(line, scores.metric, between))
            table.add_row(f"  {escape(line.model)}", *cells)
    return table


def _table(scores: TaskScores) -> Table:
    unit = f", {scores.unit}" if scores.unit else ""
    direction = "higher" if scores.higher_is_better else "lower"
    table = Table(
        title=f"{scores.card.name}: {metric_title(scores.metric)}{unit} ({direction} is better), "
        f"n={scores.rows[0].result.n_test}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model", overflow="fold")
    return table


def _own_metric(scores: TaskScores, column: Column) -> str:
    """The metric of a column that is not that of the title, with its direction."""
    if column.metric == scores.metric:
        return ""
    return f"{metric_title(column.metric)} {'↑' if higher_is_better(column.metric) else '↓'}"


def _cell(scores: TaskScores, row: StoredRow | None, between: str) -> str:
    if row is None:
        return NOTHING
    r = row.result
    interval = interval_text(r.metric, r.score, r.low, r.high)
    value = score_text(r.metric, r.score, r.low, r.high)
    return _with_interval(value, interval, scores.marks(row), between)


def _difference(line: Line, metric: str, between: str) -> str:
    gap = line.gap
    if gap is None:
        return NOTHING
    interval = interval_text(metric, gap.delta, gap.low, gap.high)
    value = signed_text(metric, gap.delta, gap.low, gap.high)
    return _with_interval(value, interval, "*" if gap.significant else "", between)


def _with_interval(value: str, interval: str, marks: str, between: str) -> str:
    """A score, its interval and its marks; what is empty leaves no blank."""
    interval = f"[dim]{escape(interval)}[/dim]" if interval else ""
    marks = f"[dim]{marks}[/dim]" if marks else ""
    if between == "\n":  # marks beside the score: the interval decides the width
        return "\n".join(filter(None, (" ".join(filter(None, (value, marks))), interval)))
    return " ".join(filter(None, (value, interval, marks)))


def _spread(row: StoredRow | None) -> str:
    spread = None if row is None else row.result.spread
    return NOTHING if spread is None else plain(spread, 2)


def print_summary(page: Path) -> None:
    """Where the summary of the run is, and what its protocols drew, if they did."""
    out.print(f"Summary: {escape(str(page))}", soft_wrap=True)
    drawn = page.parent / FOLDER
    number = sum(1 for _ in drawn.glob("*/*.png"))
    if number:
        out.print(f"Pictures ({number}): {escape(str(drawn))}", soft_wrap=True)


# --- the board -----------------------------------------------------------------------------------


def print_serve_hint(url: str) -> None:
    """How to look at the board."""
    out.print(f"Look at the board: tomoprobe serve --db {shlex.quote(url)}", soft_wrap=True)


def print_address(host: str, port: int) -> None:
    """Where the board is, before the server takes over the terminal."""
    out.print(f"The board: http://{host}:{port}/  (Ctrl-C stops it)")
