"""What a run prints: progress on stderr, scores on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..benchmark import statistics
from ..benchmark.types import Probe, Result, Task
from ..leaderboard.printing import interval_text, metric_title, plain, score_text

if TYPE_CHECKING:
    from .runner import Failure
    from .session import Ran, Session

out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
"""A pipe or file has no width of its own: wide enough for every table."""
err = Console(stderr=True, highlight=False)

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
        err.print(
            f"[red]{failure.encoder} on {failure.task} ({failure.probe}) failed:[/red] "
            f"{failure.reason}"
        )


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


def print_scores(work: Session, ran: Ran) -> None:
    """One table per task: models by score, probes as columns, paired differences to the floor."""
    from .session import differences, rows_of

    rows = rows_of(work, ran)
    for opened in ran.tasks:
        card = opened.task.card
        mine = [r for r in rows if r.task == card.name and r.metric == card.metric]
        if not mine:
            continue
        gaps = differences(work, ran, opened, FLOOR)
        out.print(_score_table(card, mine, gaps))
        if not opened.complete:
            out.print(
                "[yellow]subset:[/yellow] an incomplete copy; these rows are never ranked beside "
                "complete ones."
            )
        if card.note:
            out.print(f"[dim]{card.note}[/dim]")
        out.print()
    for text in dict.fromkeys(_estimand(opened) for opened in ran.tasks):
        out.print(f"[dim]{text}[/dim]")
    new = sum(not r.subset for r in rows)
    out.print(f"{len(rows)} rows ({new} on complete data) are stored in {work.url}")


PRIMARY = "linear"
"""The probe by which a table is sorted, and whose differences it shows, where it took part."""


def _estimand(opened: Any) -> str:
    from ..benchmark.splits import uses_cv

    return statistics.ESTIMANDS["cv" if uses_cv(opened.task.card) else "split"]


def _score_table(
    card: Any, rows: Sequence[Result], gaps: Mapping[str, Mapping[str, statistics.Difference]]
) -> Table:
    from ..benchmark import metrics

    higher = metrics.get(card.metric).higher_is_better
    unit = f", {card.unit}" if card.unit else ""
    direction = "higher" if higher else "lower"
    table = Table(
        title=f"{card.name}: {metric_title(card.metric)}{unit} ({direction} is better), "
        f"n={rows[0].n_test}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model", no_wrap=True)
    names = sorted({r.probe for r in rows}, key=lambda name: (name != PRIMARY, name))
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("spread", justify="right")
    first = names[0]
    if gaps:
        table.add_column(f"{first} minus {FLOOR}", justify="right")
    by_model: dict[str, dict[str, Result]] = {}
    for row in rows:
        by_model.setdefault(row.model_sha, {})[row.probe] = row

    def rank(cells: Mapping[str, Result]) -> float:
        score = cells[first].score if first in cells else None
        return float("inf") if score is None else -score if higher else score

    for sha, cells in sorted(by_model.items(), key=lambda item: rank(item[1])):
        row = next(iter(cells.values()))
        texts = [_cell(cells[n]) if n in cells else "–" for n in names]
        spread = cells[first].spread if first in cells else None
        line = [row.model, *texts, "–" if spread is None else plain(spread, 2)]
        if gaps:
            line.append(_difference(gaps.get(first, {}).get(sha), card.metric))
        table.add_row(*line)
    return table


def _cell(row: Result) -> str:
    interval = interval_text(row.metric, row.score, row.low, row.high)
    return f"{score_text(row.metric, row.score, row.low, row.high)} [dim]{_plain(interval)}[/dim]"


def _plain(text: str) -> str:
    """Brackets are rich's markup."""
    return text.replace("[", r"\[")


def _difference(gap: statistics.Difference | None, metric: str) -> str:
    if gap is None:
        return "–"
    mark = " *" if gap.significant else ""
    interval = interval_text(metric, gap.delta, gap.low, gap.high)
    sign = "+" if gap.delta > 0 else ""
    value = score_text(metric, gap.delta, gap.low, gap.high)
    return f"{sign}{value} [dim]{_plain(interval)}[/dim]{mark}"


def print_serve_hint(url: str) -> None:
    """How to look at the board."""
    out.print(f"Look at the board: tomoprobe serve --db {url}", soft_wrap=True)
