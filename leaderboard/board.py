"""What each page shows: a question to the database, the standings, and the visitor's view of them.

No HTML here and no SQL. The downloads and the pages are made of the same objects, so they agree.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import Engine

from ..benchmark.types import Budget, Kind
from . import db, printing
from .floors import Floors, floors
from .protocols import budget_of, kind_of, metric_of, probes_by_kind, standard_probe
from .ranking import Column, Standing, Standings, standings
from .records import StoredModel, StoredRow, StoredTask, Unit
from .settings import Settings
from .versions import Versions
from .view import Choices, View, chosen_shots

_KINDS = get_args(Kind)


@dataclass(frozen=True)
class Board:
    """The table of models by tasks."""

    view: View
    choices: Choices
    tasks: tuple[StoredTask, ...]
    """The columns; of each the newest version with results of its probe."""
    standings: Standings
    """All models: filters on models hide rows but change no rank."""
    floors: Floors
    """What any model has to beat, by column."""
    shown: tuple[Standing, ...]
    """Rows in the order asked for."""
    models: Mapping[str, StoredModel]
    labels: Mapping[str, str]
    probe: str
    """Of all columns; empty where they have several, or there is none."""
    shots: int | None
    """None, too, where the columns have several probes: each then has its own."""
    known_shots: tuple[int | None, ...]
    budget: Budget | None
    """Of the one probe, where it has one: what the shots count."""
    superseded: Mapping[str, str]
    """By task, why a whole column is of an older version: nothing newer is evaluated yet."""
    without_results: tuple[str, ...]
    """Tasks that the filters let through but that have no result with their probe."""

    @property
    def kinds(self) -> int:
        """How many kinds of tasks are shown side by side."""
        return len({kind_of(task) for task in self.tasks})

    @property
    def only_sanity_checks(self) -> bool:
        """Whether nothing that is shown is evidence about radiology."""
        return bool(self.tasks) and not any(is_evidence(task) for task in self.tasks)


def is_evidence(task: StoredTask) -> bool:
    """False for a sanity check."""
    return bool(task.card.get("evidence", True))


def labels(models: Iterable[StoredModel]) -> dict[str, str]:
    """Names to show by ``model_sha``; models of one name are told apart by their identity."""
    listed = list(models)
    times = Counter(model.name for model in listed)
    return {
        m.model_sha: m.name if times[m.name] == 1 else f"{m.name} ({m.model_sha[:8]})"
        for m in listed
    }


def newest(
    tasks: Iterable[StoredTask], answered: Collection[tuple[str, int]] = ()
) -> list[StoredTask]:
    """One version of each task; sanity checks last, then by kind, modality and name.

    Kinds come in the order of ``types.Kind``.

    Args:
        tasks: all versions.
        answered: (name, version) with results. The newest of these is taken before the newest of
            all, so that a task of which nothing is done again keeps its old results on the board.
    """
    latest: dict[str, StoredTask] = {}

    def key(task: StoredTask) -> tuple[bool, int]:
        return ((task.name, task.version) in answered, task.version)

    for task in tasks:
        if task.name not in latest or key(task) > key(latest[task.name]):
            latest[task.name] = task
    return sorted(
        latest.values(),
        key=lambda t: (
            not is_evidence(t),
            _KINDS.index(kind_of(t)) if kind_of(t) in _KINDS else len(_KINDS),
            str(t.card.get("modality")),
            t.name,
        ),
    )


def answered_by(probe: str, units: Iterable[Unit]) -> set[tuple[str, int]]:
    """(name, version) of the tasks with results of the probe."""
    return {(unit.task, unit.task_version) for unit in units if unit.probe == probe}


def unit_of(task: StoredTask, metric: str) -> str:
    """Of a score in that metric on the task; empty: it has none."""
    return printing.unit_of(metric, str(task.card.get("unit") or ""))


def deciding(units: Sequence[Unit], self_run: Collection[Unit]) -> list[Unit]:
    """Units from which it is told what version of a task and a probe is shown.

    Self-run ones decide only where there is nothing else: nobody can make the rows of others look
    old with numbers of his own.
    """
    ours = {(u.task, u.probe) for u in units if u not in self_run}
    return [u for u in units if u not in self_run or (u.task, u.probe) not in ours]


def board(engine: Engine, parameters: Iterable[tuple[str, str]], settings: Settings) -> Board:
    """The board that the GET parameters ask for.

    Raises:
        ParameterError: a value that means nothing here.
    """
    suites = settings.suites
    stored, models, units = db.tasks(engine), db.models(engine), db.units(engine)
    choices = Choices.of(newest(stored), units, suites)
    view = View.parse(parameters, choices)
    shown = deciding(units, db.self_run_units(engine))
    by_kind = probes_by_kind(stored, shown, settings)

    def probe_of(task: StoredTask) -> str:
        kind = kind_of(task)
        return view.probe or by_kind.get(kind, "") or standard_probe(kind, settings)

    with_results = {(u.task, u.task_version, u.probe) for u in shown}
    answered = {
        (t.name, t.version) for t in stored if (t.name, t.version, probe_of(t)) in with_results
    }
    let_through = [task for task in newest(stored, answered) if view.shows(task.card, suites)]
    # A task that is named stays; otherwise a column without a single result says nothing.
    tasks = [t for t in let_through if (t.name, t.version) in answered or t.name in view.task]
    by_probe: dict[str, list[StoredTask]] = {}
    for task in tasks:
        by_probe.setdefault(probe_of(task), []).append(task)
    rows = {p: ranking_rows(engine, its, p, settings) for p, its in by_probe.items()}
    shots = _shots_by_probe(view, rows, settings)
    versions = Versions.of(stored, units, settings)
    columns = [
        column_of(
            task,
            probe := probe_of(task),
            probe_version(task, probe, shown),
            shots[probe],
            metric_of(task, probe, settings),
        )
        for task in tasks
    ]
    every = [row for its in rows.values() for row in its]
    found = standings(every, columns, [model.model_sha for model in models], units, versions)
    named = labels(models)
    only = view.probe or (next(iter(by_probe)) if len(by_probe) == 1 else "")
    return Board(
        view=view,
        choices=choices,
        tasks=tuple(tasks),
        standings=found,
        floors=floors(found, models, named),
        shown=_arranged(found, view, named),
        models={model.model_sha: model for model in models},
        labels=named,
        probe=only,
        shots=shots.get(only),
        known_shots=shots_of(rows.get(only, [])),
        budget=budget_of(only, settings),
        superseded=superseded_columns(found, versions),
        without_results=tuple(t.name for t in let_through if t not in tasks),
    )


def _shots_by_probe(
    view: View, rows: Mapping[str, Sequence[StoredRow]], settings: Settings
) -> dict[str, int | None]:
    """The training size to show of each probe; one that has not the size asked for: its default."""
    elsewhere = all_sizes(settings)
    if len(rows) > 1:
        elsewhere |= {k for its in rows.values() for k in shots_of(its) if k is not None}
    return {
        probe: chosen_shots(view.shots, shots_of(its), shots_of(scored(its)), elsewhere)
        for probe, its in (rows or {"": []}).items()
    }


def superseded_columns(found: Standings, versions: Versions) -> dict[str, str]:
    """By task, what has changed since the versions of its column; tasks without rows left out."""
    told = {
        c.task: versions.behind(c.task, c.version, c.probe, c.probe_version)
        for i, c in enumerate(found.columns)
        if any(s.cells[i].row is not None for s in found.rows)
    }
    return {task: text for task, text in told.items() if text}


def column_of(task: StoredTask, probe: str, version: int, shots: int | None, metric: str) -> Column:
    """The column of a task; ``version`` is the probe's."""
    return Column(
        task=task.name,
        version=task.version,
        metric=metric,
        probe=probe,
        probe_version=version,
        shots=shots,
        evidence=is_evidence(task),
    )


def all_sizes(settings: Settings) -> set[int]:
    """Every size of every budget."""
    return {k for p in settings.probes.values() if p.budget is not None for k in p.budget.sizes}


def scored(rows: Iterable[StoredRow]) -> list[StoredRow]:
    """The rows with a score."""
    return [row for row in rows if row.result.score is not None]


def ranking_rows(
    engine: Engine, tasks: Sequence[StoredTask], probe: str, settings: Settings
) -> list[StoredRow]:
    """All rows of the probe in the metrics that rank it on these tasks."""
    metrics = sorted({metric_of(task, probe, settings) for task in tasks})
    return db.rows(engine, tasks=[task.name for task in tasks], probe=probe, metric=metrics)


def probe_version(task: StoredTask, probe: str, units: Sequence[Unit]) -> int:
    """The newest version with results on this task; scores of two versions are not compared."""
    asked = (task.name, task.version, probe)
    versions = (u.probe_version for u in units if (u.task, u.task_version, u.probe) == asked)
    return max(versions, default=1)


def shots_of(rows: Iterable[StoredRow]) -> tuple[int | None, ...]:
    """The sizes of the training budget that occur, None first."""
    found = {row.result.shots for row in rows}
    return tuple(sorted(found, key=lambda k: (k is not None, k or 0)))


def _arranged(found: Standings, view: View, named: Mapping[str, str]) -> tuple[Standing, ...]:
    """The rows that the view lets through, in its order; empty cells are always last."""
    search = view.q.casefold()
    rows = [
        s
        for s in found.rows
        if search in named[s.model_sha].casefold()
        and (not view.complete or (found.total > 0 and s.done == found.total))
    ]
    by_name = sorted(rows, key=lambda s: (named[s.model_sha].casefold(), s.model_sha))
    if view.sort == "model":
        return tuple(reversed(by_name) if view.order == "desc" else by_name)
    if view.sort == "done":
        return tuple(sorted(by_name, key=lambda s: s.done, reverse=view.order != "asc"))
    if view.sort.startswith("task."):
        name = view.sort.removeprefix("task.")
        for i, column in enumerate(found.columns):
            if column.task == name:
                descending = view.order == "desc" if view.order else None
                return tuple(by_score(rows, i, column, named, descending))
    ranked = sorted(
        (s for s in by_name if s.mean_rank is not None),
        key=lambda s: s.mean_rank or 0.0,
        reverse=view.order == "desc",
    )
    rest = sorted((s for s in by_name if s.mean_rank is None), key=lambda s: -s.done)
    return (*ranked, *rest)


def by_score(
    rows: Sequence[Standing],
    i: int,
    column: Column,
    named: Mapping[str, str],
    descending: bool | None,
) -> list[Standing]:
    """By the score in column ``i``: ranked rows, then rows that do not compete, then the rest.

    ``descending`` None: the better score first.
    """
    sign = -1 if (column.higher_is_better if descending is None else descending) else 1

    def key(s: Standing) -> tuple[object, ...]:
        cell = s.cells[i]
        score = None if cell.row is None else cell.row.result.score
        return (
            cell.rank is None,
            score is None,
            0.0 if score is None else sign * score,
            named[s.model_sha].casefold(),
            s.model_sha,
        )

    return sorted(rows, key=key)
