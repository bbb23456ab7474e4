"""The scores of a run, arranged by task, model and probe: for the terminal and the summary page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from ..benchmark import metrics, statistics
from ..benchmark.budgets import budget_of
from ..benchmark.evaluate import SKIPPED
from ..benchmark.learning_curves import LabelShare
from ..benchmark.probes import STANDARD
from ..benchmark.splits import uses_cv
from ..benchmark.studies import AnyProbe, metric_of
from ..benchmark.types import Budget, Result, TaskCard
from ..leaderboard.printing import unit_of
from ..leaderboard.records import StoredRow
from ..leaderboard.sizes import size_in_words

if TYPE_CHECKING:
    from .runner import OpenTask
    from .runs import Ran
    from .session import Session

FLOOR = "intensity"
"""The model that differences are taken against where it took part."""


@dataclass(frozen=True)
class Column:
    """One probe in a table."""

    probe: str
    size: str
    """Which of the probe's numbers is shown; empty where there is one."""
    metric: str
    """That ranks the probe on this task."""


@dataclass(frozen=True)
class Line:
    """One model in a table."""

    model_sha: str
    model: str
    cells: Mapping[str, StoredRow]
    """The main number by probe."""
    gap: statistics.Difference | None
    """To the floor, with the compared probe."""


@dataclass(frozen=True)
class TaskScores:
    """What a run found on one task, each probe in the metric that ranks it."""

    opened: OpenTask
    rows: Sequence[StoredRow]
    """All sizes of all probes; main numbers and the rest."""
    columns: Sequence[Column]
    lines: Sequence[Line]
    """Best first, by the first column."""
    flags: Mapping[str, int]
    """Number of the footnote of every flag; those of the main numbers come first."""
    compared: str = ""
    """The probe whose differences to the floor are shown, the first; empty: none are."""

    @property
    def card(self) -> TaskCard:
        """Of the task."""
        return self.opened.task.card

    @property
    def higher_is_better(self) -> bool:
        """Direction of the metric of the first column."""
        return metrics.get(self.metric).higher_is_better

    @property
    def metric(self) -> str:
        """Of the first column, by which the table is sorted."""
        return self.columns[0].metric

    @property
    def unit(self) -> str:
        """Of that metric; empty: it has none."""
        return unit_of(self.metric, self.card.unit)

    @property
    def footnotes(self) -> list[tuple[int, str]]:
        """What each mark says, of all rows."""
        return [(number, statistics.FLAGS.get(flag, flag)) for flag, number in self.flags.items()]

    @property
    def main_footnotes(self) -> list[tuple[int, str]]:
        """Those of the main numbers."""
        main = {flag for line in self.lines for row in line.cells.values() for flag in row.flags}
        wanted = {self.flags[flag] for flag in main}
        return [(number, text) for number, text in self.footnotes if number in wanted]

    def skipped(self, probe: str) -> list[tuple[int, str]]:
        """Sizes that could not be drawn, rising, and why."""
        reasons = {
            row.result.shots: flag.removeprefix(SKIPPED)
            for row in self.rows
            for flag in row.flags
            if row.result.probe == probe and flag.startswith(SKIPPED)
        }
        return sorted((size, why) for size, why in reasons.items() if size is not None)

    def limit(self, probe: str) -> str:
        """Why the size next to those that were drawn could not be."""
        skipped = dict(self.skipped(probe))
        drawn = [
            row.result.shots
            for row in self.rows
            if row.result.probe == probe and row.result.shots not in (None, *skipped)
        ]
        too_large = bool(drawn) and min(skipped) > min(drawn)
        return skipped[min(skipped) if too_large else max(skipped)]

    def marks(self, of: StoredRow | LabelShare) -> str:
        """The footnotes of a number, e.g. ``"1,2"``."""
        return ",".join(str(n) for n in sorted(self.flags[f] for f in of.flags))

    def with_flags(self, more: Iterable[str]) -> TaskScores:
        """With footnotes also for flags of numbers that are no rows."""
        return replace(self, flags=_numbered([*self.flags, *more]))


@dataclass(frozen=True)
class RunScores:
    """What a run found."""

    rows: Sequence[StoredRow]
    """Also those that were stored before it."""
    tasks: Sequence[TaskScores]
    """Those with a score, in the order of the run."""
    floor: str = ""
    """The floor's model_sha; empty: it took no part."""
    estimands: Sequence[str] = field(default=())
    """What the intervals are about."""

    @property
    def compared(self) -> str:
        """The probes whose differences to the floor are shown; empty: none are."""
        return ", ".join(dict.fromkeys(s.compared for s in self.tasks if s.compared))


def gather(work: Session, ran: Ran) -> RunScores:
    """Arrange the rows of a run, and compare every model with the floor."""
    from .runs import differences, rows_of

    rows = rows_of(work, ran)
    main = {
        opened.task.card.name: _of_task(opened.task.card, rows, ran.probes) for opened in ran.tasks
    }
    floor = ran.outcome.model_shas.get(FLOOR, "")
    compared = {
        task: next(iter(by_probe.values())).probe
        for task, by_probe in main.items()
        if by_probe and _one_number(budget_of(next(iter(by_probe.values())).probe))
    }
    gaps = differences(work, ran, compared, floor) if floor and compared else {}
    found = []
    for opened in ran.tasks:
        name = opened.task.card.name
        if main[name]:
            shown = compared[name].name if gaps.get(name) else ""
            found.append(_task(opened, main[name], gaps.get(name, {}), shown))
    estimands = dict.fromkeys(
        statistics.ESTIMANDS[key] for scores in found for key in _estimands(scores, ran.probes)
    )
    return RunScores(rows, found, floor, tuple(estimands))


class _Asked(NamedTuple):
    """One probe on one task."""

    probe: AnyProbe
    metric: str
    rows: Sequence[StoredRow]
    """In that metric."""


def _of_task(
    card: TaskCard, rows: Sequence[StoredRow], probes: Sequence[AnyProbe]
) -> dict[str, _Asked]:
    """The probes with rows on a task by name, the standard one of its kind first."""
    found = {}
    for probe in sorted(probes, key=lambda p: (p.name != STANDARD[card.kind], *_place(p))):
        metric = metric_of(probe, card)
        asked = (card.name, probe.name, metric)
        mine = [r for r in rows if (r.result.task, r.result.probe, r.result.metric) == asked]
        if mine:
            found[probe.name] = _Asked(probe, metric, mine)
    return found


def main_of(results: Iterable[Result], metric: str) -> Result | None:
    """The number that stands for a unit: on all patients, or the area, or the largest size.

    Of sizes, the largest that has a score: those that could not be drawn have none.
    """
    mine = [r for r in results if r.metric == metric]
    return max(mine, key=_weight) if mine else None


def _weight(result: Result) -> tuple[bool, float]:
    return result.score is not None, float("inf") if result.shots is None else result.shots


def _place(probe: AnyProbe) -> tuple[bool, str]:
    return budget_of(probe) is not None, probe.name


def _one_number(budget: Budget | None) -> bool:
    """Whether ``runs.differences`` compares what the table shows."""
    return budget is None or budget.area


def _task(
    opened: OpenTask,
    asked: Mapping[str, _Asked],
    gaps: Mapping[str, statistics.Difference],
    compared: str,
) -> TaskScores:
    units: dict[str, dict[str, list[StoredRow]]] = {}
    rows = [row for one in asked.values() for row in one.rows]
    for row in rows:
        r = row.result
        units.setdefault(r.model_sha, {}).setdefault(r.probe, []).append(row)
    lines = [
        Line(
            sha,
            next(iter(by_probe.values()))[0].result.model,
            {probe: max(of, key=lambda r: _weight(r.result)) for probe, of in by_probe.items()},
            gaps.get(sha),
        )
        for sha, by_probe in units.items()
    ]
    first = next(iter(asked.values()))
    sign = -1 if metrics.get(first.metric).higher_is_better else 1

    def rank(line: Line) -> float:
        row = line.cells.get(first.probe.name)
        undefined = row is None or row.result.score is None
        return float("inf") if undefined else sign * row.result.score  # type: ignore[operator]

    main = [row for line in lines for row in line.cells.values()]
    rest = sorted(rows, key=lambda r: (r.result.probe, r.result.shots or 0))
    flags = [flag for row in [*main, *rest] for flag in row.flags]
    return TaskScores(
        opened,
        rows,
        [Column(name, _size(one.probe, lines), one.metric) for name, one in asked.items()],
        sorted(lines, key=rank),
        _numbered(flags),
        compared,
    )


def _numbered(flags: Iterable[str]) -> dict[str, int]:
    return {flag: number for number, flag in enumerate(dict.fromkeys(flags), start=1)}


def _size(probe: AnyProbe, lines: Sequence[Line]) -> str:
    """Which size a column shows: one plan of supports is shared by all models."""
    budget = budget_of(probe)
    if budget is None:
        return ""
    shots = {line.cells[probe.name].result.shots for line in lines if probe.name in line.cells}
    return " or ".join(size_in_words(k, budget) for k in sorted(shots, key=lambda k: k or 0))


def _estimands(scores: TaskScores, probes: Sequence[AnyProbe]) -> Iterable[str]:
    shown = {column.probe for column in scores.columns}
    budgets = [budget_of(probe) for probe in probes if probe.name in shown]
    if uses_cv(scores.card):
        yield "cv"
    elif None in budgets:
        yield "split"
    if any(budgets):
        yield "seeds"
