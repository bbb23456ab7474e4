"""What a run prints: progress on stderr, scores on stdout."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..benchmark import metrics, statistics
from ..benchmark.splits import uses_cv
from ..benchmark.types import Probe, Task, TaskCard
from ..leaderboard.printing import NOTHING, interval_text, metric_title, plain, score_text
from ..leaderboard.records import StoredRow
from .terminal import err, out

if TYPE_CHECKING:
    from .runner import Failure, OpenTask
    from .session import Ran, Session


FLOOR = "intensity"
"""The model that differences are taken against where it took part."""


# --- progress ----------------------------------------------------------------------------------


class _Bars:
    """A bar for the run and one for the step in hand; see ``runner.Reporter``."""

    def __init__(self, progress: Progress, units: int) -> None:
        self._progress = progress
        self._run = progress.add_task("preparing", total=units)
        self._step = progress.add_task("", total=None, visible=False)

    def opening(self, task: str) -> None:
        self._progress.update(self._step, description=f"reading {task}", total=None, visible=True)

    def extracting(self, encoder: str, task: str, done: int, total: int) -> None:
        self._progress.update(self._run, description="evaluating")
        self._progress.update(
            self._step,
            description=f"{encoder}: features of {task}",
            completed=done,
            total=total,
            visible=True,
        )

    def probing(self, encoder: str, task: str, probe: str) -> None:
        self._progress.update(
            self._step, description=f"{encoder}: {probe} on {task}", total=None, visible=True
        )

    def finished(self, encoder: str, task: str, probe: str, new: bool) -> None:
        self._progress.advance(self._run)

    def failed(self, failure: Failure) -> None:
        self._progress.advance(self._run)
        where = escape(f"{failure.encoder} on {failure.task} ({failure.probe})")
        err.print(f"[red]{where} failed:[/red] {escape(failure.reason)}")


@contextmanager
def progress(n_encoders: int, tasks: Sequence[Task], probes: Sequence[Probe]) -> Iterator[_Bars]:
    """Progress bars for a run; plain when stderr is no terminal."""
    units = n_encoders * sum(task.card.kind in probe.kinds for task in tasks for probe in probes)
    columns = (
        TextColumn("{task.description:<46}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        yield _Bars(bars, units)


# --- scores ------------------------------------------------------------------------------------


PRIMARY = "linear"
"""The probe by which a table is sorted, and whose differences it shows, where it took part."""


def print_scores(work: Session, ran: Ran) -> None:
    """One table per task: models by score, probes as columns, paired differences to the floor."""
    from .session import differences, rows_of

    rows = rows_of(work, ran)
    probes = sorted({row.result.probe for row in rows}, key=lambda name: (name != PRIMARY, name))
    floor = ran.outcome.model_shas.get(FLOOR)
    gaps = differences(work, ran, probes[0], floor) if floor and probes else {}
    for opened in ran.tasks:
        card = opened.task.card
        mine = [r for r in rows if r.result.task == card.name and r.result.metric == card.metric]
        if not mine:
            continue
        out.print(_score_table(card, mine, probes, gaps.get(card.name, {})))
        for line in _footnotes(card, mine, opened.complete):
            out.print(f"[dim]{escape(line)}[/dim]")
        out.print()
    if any(gaps.values()):
        out.print(
            f"[dim]{probes[0]} minus {FLOOR}: paired on the same patients, with its own 95 % "
            "interval. * differs after Holm's adjustment over all differences shown.[/dim]"
        )
    for text in dict.fromkeys(_estimand(opened) for opened in ran.tasks):
        out.print(f"[dim]{text}[/dim]")
    complete = sum(not row.result.subset for row in rows)
    out.print(f"{len(rows)} rows ({complete} on complete data) are in {escape(work.shown_url)}")


def _estimand(opened: OpenTask) -> str:
    return statistics.ESTIMANDS["cv" if uses_cv(opened.task.card) else "split"]


def _footnotes(card: TaskCard, rows: Sequence[StoredRow], complete: bool) -> Iterator[str]:
    """What a reader of the table must know."""
    flags = {flag: statistics.FLAGS[flag] for row in rows for flag in row.flags}
    for number, flag in enumerate(sorted(flags), start=1):
        yield f"{number}) {flags[flag]}"
    if not complete:
        yield (
            "Subset: an incomplete copy; these rows are marked and never ranked beside complete "
            "ones."
        )
    if card.note:
        yield card.note


def _score_table(
    card: TaskCard,
    rows: Sequence[StoredRow],
    probes: Sequence[str],
    gaps: Mapping[str, statistics.Difference],
) -> Table:
    higher = metrics.get(card.metric).higher_is_better
    unit = f", {card.unit}" if card.unit else ""
    direction = "higher" if higher else "lower"
    table = Table(
        title=f"{card.name}: {metric_title(card.metric)}{unit} ({direction} is better), "
        f"n={rows[0].result.n_test}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model", no_wrap=True)
    first = probes[0]
    for name in probes:
        table.add_column(name, justify="right")
    table.add_column("spread", justify="right")
    if gaps:
        table.add_column(f"{first} minus {FLOOR}", justify="right")
    marks = sorted({flag for row in rows for flag in row.flags})
    by_model: dict[str, dict[str, StoredRow]] = {}
    for row in rows:
        by_model.setdefault(row.result.model_sha, {})[row.result.probe] = row

    def rank(cells: Mapping[str, StoredRow]) -> float:
        score = cells[first].result.score if first in cells else None
        return float("inf") if score is None else -score if higher else score

    for sha, cells in sorted(by_model.items(), key=lambda item: rank(item[1])):
        texts = [_cell(cells[n], marks) if n in cells else NOTHING for n in probes]
        spread = cells[first].result.spread if first in cells else None
        line = [
            escape(next(iter(cells.values())).result.model),
            *texts,
            NOTHING if spread is None else plain(spread, 2),
        ]
        if gaps:
            line.append(_difference(gaps.get(sha), card.metric))
        table.add_row(*line)
    return table


def _cell(row: StoredRow, marks: Sequence[str]) -> str:
    r = row.result
    interval = escape(interval_text(r.metric, r.score, r.low, r.high))
    notes = ",".join(str(marks.index(flag) + 1) for flag in sorted(row.flags))
    return f"{score_text(r.metric, r.score, r.low, r.high)} [dim]{interval} {notes}[/dim]".replace(
        " [/dim]", "[/dim]"
    )


def _difference(gap: statistics.Difference | None, metric: str) -> str:
    if gap is None:
        return NOTHING
    mark = " *" if gap.significant else ""
    interval = interval_text(metric, gap.delta, gap.low, gap.high)
    sign = "+" if gap.delta > 0 else ""
    value = score_text(metric, gap.delta, gap.low, gap.high)
    return f"{sign}{value} [dim]{escape(interval)}[/dim]{mark}"


def print_serve_hint(url: str) -> None:
    """How to look at the board."""
    out.print(f"Look at the board: tomoprobe serve --db {shlex.quote(url)}", soft_wrap=True)


def print_address(host: str, port: int) -> None:
    """Where the board is, before the server takes over the terminal."""
    out.print(f"The board: http://{host}:{port}/  (Ctrl-C stops it)")
