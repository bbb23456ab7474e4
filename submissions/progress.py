"""How a run goes, on stderr: what is done, what runs, what is left.

On a terminal a display that is redrawn; elsewhere (a log, CI) one plain line per finished unit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..benchmark.budgets import budget_of
from ..benchmark.studies import AnyProbe, metric_of
from ..benchmark.types import Result, Task
from ..leaderboard.printing import metric_title, unit_of, with_interval
from ..leaderboard.sizes import size_in_words
from .scores import main_of
from .terminal import clean, err

if TYPE_CHECKING:
    from .runner import Failure

LEFT, DONE, STORED, FAILED, RUNNING = "left", "done", "stored before", "failed", "running"

_MARKS = {DONE: "✓", STORED: "=", FAILED: "✗", RUNNING: "▸", LEFT: "·"}
_ASCII = {DONE: "+", STORED: "=", FAILED: "x", RUNNING: ">", LEFT: "."}
_STYLES = {DONE: "green", STORED: "dim", FAILED: "red", RUNNING: "bold cyan", LEFT: "dim"}

RECENT = 4
"""Finished units that stay in sight."""

ROWS = 8
"""Encoders that are shown at once: with the other lines, half of a terminal of 24 lines."""

_LEAST_NAME = 20  # columns of an encoder's name
_COUNTS = 17  # columns of "  120/120 tasks" and what separates it


class Tracker:
    """What of a run is done; see ``runner.Reporter``."""

    def __init__(
        self,
        encoders: Sequence[str],
        tasks: Sequence[Task],
        probes: Sequence[AnyProbe],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._metrics = {
            (task.card.name, p.name): metric_of(p, task.card) for task in tasks for p in probes
        }
        self._units_of = {task.card.name: task.card.unit for task in tasks}
        self._budgets = {probe.name: budget_of(probe) for probe in probes}
        self._serving = {
            task.card.name: [p.name for p in probes if task.card.kind in p.kinds] for task in tasks
        }
        self.started = self._last = clock()
        self.names: dict[str, str] = {}
        """What an encoder calls itself, by what was asked for."""
        self._loading: str | None = None
        self.cell: tuple[str, str] | None = None
        """The encoder (as asked for) and task in hand."""
        self._cell_started = self.started
        self._seconds: dict[str, list[float]] = {}
        self.step, self.step_done, self.step_total = "preparing", 0, 0
        self.recent: list[str] = []
        self.planned({encoder: list(self._serving) for encoder in encoders})

    # --- told by the runner --------------------------------------------------------------------

    def planned(self, plan: Mapping[str, Collection[str]]) -> None:
        """What is done here: names of tasks by encoder, as asked for."""
        self.state = {
            (encoder, task, probe): LEFT
            for encoder, tasks in plan.items()
            for task in tasks
            for probe in self._serving[task]
        }

    def loading(self, encoder: str) -> None:
        """An encoder, as asked for, is being loaded; what follows is about it."""
        self._loading, self._last = encoder, self._clock()
        self._at_step(f"loading {encoder}")

    def opening(self, task: str) -> None:
        """A task's cases are being found, counted and hashed."""
        self._at_step(f"reading {task}")

    def extracting(self, encoder: str, task: str, done: int, total: int) -> None:
        """A case has been embedded."""
        self._enter(encoder, task)
        self._at_step(f"features: {encoder} on {task}", done, total)

    def probing(self, encoder: str, task: str, probe: str) -> None:
        """A probe starts."""
        self._enter(encoder, task)
        self._at_step(f"{probe}: {encoder} on {task}")

    def working(self, encoder: str, task: str, probe: str, done: int, total: int) -> None:
        """A study has done one of its steps."""
        self._enter(encoder, task)
        self._at_step(f"{probe}: {encoder} on {task}", done, total)

    def finished(
        self, encoder: str, task: str, probe: str, new: bool, results: Sequence[Result] = ()
    ) -> None:
        """A unit is stored; ``new`` is False if it was there before; ``results`` are its rows."""
        self._settle(encoder, task, probe, DONE if new else STORED)
        score = self._score(task, probe, results)
        what = f"{encoder} {task} {probe}"
        self._show(what, " ".join(filter(None, (score, "" if new else "(stored before)"))))

    def failed(self, failure: Failure) -> None:
        """A unit could not be done; the run goes on with the next."""
        self._settle(failure.encoder, failure.task, failure.probe, FAILED)
        self._show_failure(failure)

    # --- state ---------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Units in all."""
        return len(self.state)

    @property
    def settled(self) -> int:
        """Units that are done, were stored before, or failed."""
        return sum(state != LEFT for state in self.state.values())

    def cells(self) -> dict[str, dict[str, str]]:
        """State by encoder (as asked for) and task, of all probes together."""
        by_cell: dict[str, dict[str, set[str]]] = {}
        for (encoder, task, _), state in self.state.items():
            by_cell.setdefault(encoder, {}).setdefault(task, set()).add(state)
        order = (FAILED, LEFT, DONE, STORED)
        return {
            encoder: {
                task: RUNNING
                if (encoder, task) == self.cell
                else next(state for state in order if state in states)
                for task, states in tasks.items()
            }
            for encoder, tasks in by_cell.items()
        }

    def seconds_left(self) -> float | None:
        """From the mean time of a task, per encoder where that is known; None: nothing measured."""
        times = [seconds for found in self._seconds.values() for seconds in found]
        if not times:
            return None
        left = 0.0
        open_cells = {(encoder, task) for (encoder, task, _), s in self.state.items() if s == LEFT}
        for encoder, task in open_cells:
            own = self._seconds.get(encoder) or times
            mean = sum(own) / len(own)
            if (encoder, task) == self.cell:
                spent = self._clock() - self._cell_started
                # features, or the steps of a study, can take longer than whole tasks so far
                ahead = (self.step_total - self.step_done) / max(1, self.step_done)
                mean = max(0.0, mean - spent, spent * ahead)
            left += mean
        return left

    def _asked(self, encoder: str) -> str:
        """What was asked for to get this encoder."""
        asked = list(dict.fromkeys(asked for asked, _, _ in self.state))
        if self._loading is not None:
            found = self._loading
        elif encoder in asked:
            found = encoder
        else:  # encoders come in the order in which they were asked for
            known = {name: a for a, name in self.names.items()}
            fresh = (a for a in asked if a not in self.names)
            found = known.get(encoder) or next(fresh, encoder)
        self.names.setdefault(found, encoder)
        return found

    def _enter(self, encoder: str, task: str) -> None:
        cell = self._asked(encoder), task
        if cell != self.cell:
            self.cell, self._cell_started = cell, self._last
        self._last = self._clock()

    def _settle(self, encoder: str, task: str, probe: str, state: str) -> None:
        """Of ``all`` tasks or probes, those that are not settled yet."""
        asked = self._asked(encoder)
        for unit, before in self.state.items():
            same = unit[0] == asked and task in ("all", unit[1]) and probe in ("all", unit[2])
            if same and before == LEFT:
                self.state[unit] = state
        self._last = self._clock()
        if self.cell == (asked, task) and not any(
            s == LEFT for unit, s in self.state.items() if unit[:2] == self.cell
        ):
            self._seconds.setdefault(asked, []).append(self._last - self._cell_started)
            self.cell = None

    def _at_step(self, what: str, done: int = 0, total: int = 0) -> None:
        self.step, self.step_done, self.step_total = what, done, total

    def _score(self, task: str, probe: str, results: Sequence[Result]) -> str:
        metric = self._metrics[task, probe]
        row = main_of(results, metric)
        if row is None:
            return ""
        budget = self._budgets[probe]
        size = f" ({size_in_words(row.shots, budget)})" if budget else ""
        unit = unit_of(metric, self._units_of[task])
        value = with_interval(metric, row.score, row.low, row.high, unit)
        return f"{metric_title(metric)} {value}{size}"

    def _show(self, what: str, score: str) -> None:
        """A unit was finished."""
        self.recent = [*self.recent, f"{what}  {score}".rstrip()][-RECENT:]

    def _show_failure(self, failure: Failure) -> None:
        where = f"{failure.encoder} on {failure.task} ({failure.probe})"
        err.print(f"[red]{escape(clean(where))} failed:[/red] {escape(clean(failure.reason))}")


class Lines(Tracker):
    """For a log: a line per finished unit, without control characters."""

    def _show(self, what: str, score: str) -> None:
        self._print(f"{what}  {score}".rstrip())

    def _show_failure(self, failure: Failure) -> None:
        reason = " ".join(failure.reason.split())
        self._print(f"{failure.encoder} {failure.task} {failure.probe}  failed: {reason}")

    def _print(self, text: str) -> None:
        counted = f"{self.settled:>{len(str(self.total))}}/{self.total}"
        err.print(Text(clean(f"{counted}  {text}")), soft_wrap=True)


class Display(Tracker):
    """For a terminal. Drawn by a thread of its own, so each change is made under a lock."""

    def __init__(
        self, encoders: Sequence[str], tasks: Sequence[Task], probes: Sequence[AnyProbe]
    ) -> None:
        self._lock = RLock()
        super().__init__(encoders, tasks, probes)

    def _settle(self, encoder: str, task: str, probe: str, state: str) -> None:
        with self._lock:
            super()._settle(encoder, task, probe, state)

    def planned(self, plan: Mapping[str, Collection[str]]) -> None:
        """See ``Tracker``."""
        with self._lock:
            super().planned(plan)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Two bars, what was finished last, and a line per encoder."""
        with self._lock:
            yield self._bars(options.max_width)
            for line in self.recent:
                yield Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis")
            yield from self._grid(options)

    def _bars(self, width: int) -> Table:
        bars = Table.grid(padding=(0, 1), expand=True)
        bars.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        bars.add_column(width=max(10, width // 8))
        bars.add_column(justify="right", no_wrap=True)
        left = self.seconds_left()
        ahead = f", about {duration(left)} left" if left else ""
        bars.add_row(
            f"{self.settled} of {self.total} units",
            ProgressBar(max(1, self.total), self.settled),
            f"{duration(self._clock() - self.started)}{ahead}",
        )
        known = self.step_total > 0
        bars.add_row(
            Text(self.step),
            ProgressBar(self.step_total if known else 1, self.step_done, pulse=not known),
            f"{self.step_done}/{self.step_total}" if known else "",
        )
        return bars

    def _grid(self, options: ConsoleOptions) -> Iterator[Text]:
        """A mark per task, or counts where there is no room for marks."""
        marks = _ASCII if options.ascii_only else _MARKS
        cells = self.cells()
        here = list(cells).index(self.cell[0]) if self.cell else 0
        first = max(0, min(here - ROWS // 2, len(cells) - ROWS))
        shown = list(cells)[first : first + ROWS]
        longest = max((len(self.names.get(asked, asked)) for asked in shown), default=0)
        most = max((len(tasks) for tasks in cells.values()), default=0)
        marked = min(longest, _LEAST_NAME) + most + _COUNTS <= options.max_width
        name_width = min(longest, options.max_width - _COUNTS - (most if marked else 0))
        for asked in shown:
            states = list(cells[asked].values())
            name = self.names.get(asked, asked)
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(f"{name[:name_width]:<{name_width}}  ")
            if marked:
                for state in states:
                    line.append(marks[state], _STYLES[state])
            ready = sum(state in (DONE, STORED) for state in states)
            line.append(f"  {ready}/{len(states)} tasks")
            yield line
        if len(cells) > len(shown):
            yield Text(f"{len(cells) - len(shown)} more encoders", style="dim")
        everything = [state for tasks in cells.values() for state in tasks.values()]
        legend = Text(no_wrap=True, overflow="ellipsis", style="dim")
        for state in (DONE, STORED, FAILED, RUNNING, LEFT):
            if state in everything:
                legend.append(f"{marks[state]} ", _STYLES[state])
                legend.append(f"{everything.count(state)} {state}  ")
        yield legend


@contextmanager
def progress(
    encoders: int | Sequence[str], tasks: Sequence[Task], probes: Sequence[AnyProbe]
) -> Iterator[Tracker]:
    """Report on a run: a display on a terminal, lines elsewhere.

    Args:
        encoders: as asked for, or how many, where their names come only with their turn.
        tasks: of the run.
        probes: of the run.
    """
    if isinstance(encoders, int):
        encoders = [f"encoder {number}" for number in range(1, encoders + 1)]
    # FORCE_COLOR makes Rich call a log a terminal, but nothing can be redrawn there
    if not (err.is_interactive and err.is_terminal and err.file.isatty()):
        yield Lines(encoders, tasks, probes)
        return
    display = Display(encoders, tasks, probes)
    with Live(display, console=err, refresh_per_second=4, transient=True):
        yield display


def duration(seconds: float) -> str:
    """In the unit that a person would use.

    >>> duration(42.3), duration(200), duration(7300)
    ('42 s', '3 min', '2 h 2 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
