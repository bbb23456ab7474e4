"""What each page shows: a question to the database, the standings, and the visitor's view of them.

No HTML here and no SQL. The downloads and the pages are made of the same objects, so they agree.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from . import db
from .ranking import Cell, Column, Standing, Standings, standings
from .records import StoredModel, StoredRow, StoredTask, Unit
from .view import Choices, ParameterError, Suites, View, chosen_shots, preferred_probe


@dataclass(frozen=True)
class Board:
    """The table of models by tasks."""

    view: View
    choices: Choices
    tasks: tuple[StoredTask, ...]
    """The columns; newest version of each."""
    standings: Standings
    """All models: filters on models hide rows but change no rank."""
    shown: tuple[Standing, ...]
    """Rows in the order asked for."""
    models: Mapping[str, StoredModel]
    labels: Mapping[str, str]
    probe: str
    shots: int | None
    known_shots: tuple[int | None, ...]
    without_results: tuple[str, ...]
    """Tasks that the filters let through but that have no result with this probe."""

    @property
    def only_sanity_checks(self) -> bool:
        """Whether nothing that is shown is evidence about radiology."""
        return bool(self.tasks) and not any(is_evidence(task) for task in self.tasks)


@dataclass(frozen=True)
class TaskReport:
    """All models on one task, in all its metrics."""

    task: StoredTask
    versions: tuple[int, ...]
    probe: str
    probe_version: int
    probes: tuple[str, ...]
    shots: int | None
    known_shots: tuple[int | None, ...]
    standings: Standings
    """One column per metric, the one that ranks first."""
    shown: tuple[Standing, ...]
    """Models with a row, best first in the first column."""
    missing: tuple[str, ...]
    """``model_sha`` of models without a row."""
    models: Mapping[str, StoredModel]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class ModelScores:
    """One model with one probe on the newest version of every task that has such results."""

    probe: str
    probe_version: int
    tasks: tuple[StoredTask, ...]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    ranked: tuple[int, ...]
    """How many models are ranked on each task."""


@dataclass(frozen=True)
class ModelReport:
    """One model on all tasks."""

    model: StoredModel
    label: str
    scores: tuple[ModelScores, ...]
    rows: tuple[StoredRow, ...]
    """Every number of the model."""


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


def newest(tasks: Iterable[StoredTask]) -> list[StoredTask]:
    """The newest version of each task; sanity checks last, then by kind, modality and name."""
    latest: dict[str, StoredTask] = {}
    for task in tasks:
        if task.name not in latest or task.version > latest[task.name].version:
            latest[task.name] = task
    return sorted(
        latest.values(),
        key=lambda t: (
            not is_evidence(t),
            str(t.card.get("kind")),
            str(t.card.get("modality")),
            t.name,
        ),
    )


def board(engine: Engine, parameters: Iterable[tuple[str, str]], suites: Suites) -> Board:
    """The board that the GET parameters ask for.

    Raises:
        ParameterError: a value that means nothing here.
    """
    tasks, models, units = newest(db.tasks(engine)), db.models(engine), db.units(engine)
    choices = Choices.of(tasks, units, suites)
    view = View.parse(parameters, choices)
    probe = view.probe or preferred_probe(choices.probe)
    answered = {unit.task for unit in units if unit.probe == probe}
    let_through = [task for task in tasks if view.shows(task.card, suites)]
    # A task that is named stays; otherwise a column without a single result says nothing.
    columns = [t for t in let_through if t.name in answered or t.name in view.task]
    rows = _ranking_rows(engine, columns, probe)
    known_shots = _shots_of(rows)
    shots = chosen_shots(view.shots, known_shots)
    found = standings(
        rows,
        [_column(task, probe, _probe_version(task, probe, units), shots) for task in columns],
        [model.model_sha for model in models],
        units,
    )
    named = labels(models)
    return Board(
        view=view,
        choices=choices,
        tasks=tuple(columns),
        standings=found,
        shown=_arranged(found, view, named),
        models={model.model_sha: model for model in models},
        labels=named,
        probe=probe,
        shots=shots,
        known_shots=known_shots,
        without_results=tuple(t.name for t in let_through if t not in columns),
    )


def task_report(
    engine: Engine, name: str, version: int | None, probe: str, shots: str
) -> TaskReport:
    """Everything about one task.

    Args:
        engine: of a migrated database.
        name: of the task.
        version: None: the newest.
        probe: empty: the preferred one among those that have results.
        shots: as ``View.shots``.

    Raises:
        UnknownNameError: there is no such task or version.
        ParameterError: there are no results with that probe or number of shots.
    """
    task = db.task(engine, name, version)
    units = db.units(engine)
    probes = tuple(
        sorted({u.probe for u in units if (u.task, u.task_version) == (name, task.version)})
    )
    if probe and probe not in probes:
        raise ParameterError.of("probe with results on this task", probe, probes)
    probe = probe or preferred_probe(probes)
    probe_version = _probe_version(task, probe, units)
    rows = db.rows(engine, tasks=[name], probe=probe)
    known_shots = _shots_of(rows)
    first = task.card["metric"]
    others = {row.result.metric for row in rows if row.result.task_version == task.version}
    metrics = [first, *sorted(others - {first})]
    chosen = chosen_shots(shots, known_shots)
    models = db.models(engine)
    named = labels(models)
    found = standings(
        rows,
        [_column(task, probe, probe_version, chosen, metric) for metric in metrics],
        [model.model_sha for model in models],
        units,
    )
    present = [s for s in found.rows if any(cell.row is not None for cell in s.cells)]
    seen = {s.model_sha for s in present}
    return TaskReport(
        task=task,
        versions=tuple(t.version for t in db.tasks(engine) if t.name == name),
        probe=probe,
        probe_version=probe_version,
        probes=probes,
        shots=chosen,
        known_shots=known_shots,
        standings=found,
        shown=tuple(_by_score(present, 0, found.columns[0], named, descending=None)),
        missing=tuple(model.model_sha for model in models if model.model_sha not in seen),
        models={model.model_sha: model for model in models},
        labels=named,
    )


def model_report(engine: Engine, sha: str) -> ModelReport:
    """Everything about one model.

    Raises:
        UnknownNameError: there is no model of that identity.
    """
    model = db.model(engine, sha)
    models, units, tasks = db.models(engine), db.units(engine), newest(db.tasks(engine))
    scores = []
    probes = sorted({u.probe for u in units if u.model_sha == sha})
    first = preferred_probe(probes)
    for probe in sorted(probes, key=lambda name: name != first):
        answered = {u.task for u in units if u.probe == probe}
        asked = [task for task in tasks if task.name in answered]
        rows = _ranking_rows(engine, asked, probe)
        shots = chosen_shots("", _shots_of(rows))
        found = standings(
            rows,
            [_column(task, probe, _probe_version(task, probe, units), shots) for task in asked],
            [m.model_sha for m in models],
            units,
        )
        mine = next(s for s in found.rows if s.model_sha == sha)
        ranked = tuple(
            sum(s.cells[i].rank is not None for s in found.rows) for i in range(len(asked))
        )
        version = max((c.probe_version for c in found.columns), default=1)
        scores.append(ModelScores(probe, version, tuple(asked), found.columns, mine.cells, ranked))
    return ModelReport(
        model=model,
        label=labels(models)[sha],
        scores=tuple(scores),
        rows=tuple(db.rows(engine, models=[sha])),
    )


def _column(
    task: StoredTask, probe: str, probe_version: int, shots: int | None, metric: str = ""
) -> Column:
    return Column(
        task=task.name,
        version=task.version,
        metric=metric or task.card["metric"],
        probe=probe,
        probe_version=probe_version,
        shots=shots,
        evidence=is_evidence(task),
    )


def _ranking_rows(engine: Engine, tasks: Sequence[StoredTask], probe: str) -> list[StoredRow]:
    metrics = sorted({task.card["metric"] for task in tasks})
    return db.rows(engine, tasks=[task.name for task in tasks], probe=probe, metric=metrics)


def _probe_version(task: StoredTask, probe: str, units: Sequence[Unit]) -> int:
    """The newest version with results on this task; scores of two versions are not compared."""
    asked = (task.name, task.version, probe)
    versions = (u.probe_version for u in units if (u.task, u.task_version, u.probe) == asked)
    return max(versions, default=1)


def _shots_of(rows: Sequence[StoredRow]) -> tuple[int | None, ...]:
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
                return tuple(_by_score(rows, i, column, named, descending))
    ranked = sorted(
        (s for s in by_name if s.mean_rank is not None),
        key=lambda s: s.mean_rank or 0.0,
        reverse=view.order == "desc",
    )
    rest = sorted((s for s in by_name if s.mean_rank is None), key=lambda s: -s.done)
    return (*ranked, *rest)


def _by_score(
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
