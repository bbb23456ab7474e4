"""What the pages of a task and of a model show; see ``board`` for the rules."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Engine

from ..benchmark.types import Budget
from . import db
from .board import (
    all_sizes,
    answered_by,
    by_score,
    column_of,
    deciding,
    labels,
    newest,
    probe_version,
    ranking_rows,
    scored,
    shots_of,
    superseded_columns,
)
from .floors import Floors, floors
from .protocols import budget_of, kind_of, metric_of, preferred_probe, standard_probe
from .ranking import Cell, Column, Standing, Standings, standings, why_skipped
from .records import StoredModel, StoredRow, StoredTask
from .settings import Settings
from .sizes import default_size
from .versions import Step, Versions
from .view import ParameterError, chosen_shots


@dataclass(frozen=True)
class Sizes:
    """The learning curves of all models on one task, in the metric that ranks."""

    standings: Standings
    """One column per size that could be drawn, rising; the mean over the curve last."""
    shown: tuple[Standing, ...]
    """Best first, by the mean over the curve or else by the largest size."""
    skipped: Mapping[int, str]
    """By size, why it could not be drawn."""


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
    budget: Budget | None
    """Of the probe, where it has one: what the shots count."""
    standings: Standings
    """One column per metric, the one that ranks first."""
    floors: Floors
    """What any model has to beat, by column."""
    shown: tuple[Standing, ...]
    """Models with a row, best first in the first column."""
    sizes: Sizes | None
    """Of a probe with a budget."""
    missing: tuple[str, ...]
    """``model_sha`` of models without a row."""
    models: Mapping[str, StoredModel]
    labels: Mapping[str, str]
    superseded: str
    """Why what is shown does not count any more; empty: it does."""
    history: tuple[Step, ...]
    """Versions of the task and the probe, newest first."""


@dataclass(frozen=True)
class ModelScores:
    """One model with one probe on every task that has such results."""

    probe: str
    probe_version: int
    tasks: tuple[StoredTask, ...]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    floors: Floors
    """What any model has to beat, by task."""
    ranked: tuple[int, ...]
    """How many models are ranked on each task."""
    shots: int | None
    budget: Budget | None
    superseded: Mapping[str, str]
    """By task, as ``Board.superseded``."""


@dataclass(frozen=True)
class ModelReport:
    """One model on all tasks."""

    model: StoredModel
    label: str
    scores: tuple[ModelScores, ...]
    rows: tuple[StoredRow, ...]
    """Every number of the model."""
    superseded: Mapping[int, str]
    """By ``id`` of a row, why it does not count any more."""
    tasks: Mapping[str, StoredTask]
    """Newest version of every task of the rows, by name."""


def task_report(
    engine: Engine, name: str, version: int | None, probe: str, shots: str, settings: Settings
) -> TaskReport:
    """Everything about one task.

    Args:
        engine: of a migrated database.
        name: of the task.
        version: None: the newest with results of the probe.
        probe: empty: the standard probe of the task's kind, or another that has results.
        shots: as ``View.shots``.
        settings: of the operator.

    Raises:
        UnknownNameError: there is no such task or version.
        ParameterError: there are no results with that probe or number of shots.
    """
    units = db.units(engine)
    ours = deciding(units, db.self_run_units(engine))
    if version is None:
        mine = (v for task, v in answered_by(probe, ours) if task == name)
        version = max(mine, default=None)
    task = db.task(engine, name, version)
    probes = tuple(
        sorted({u.probe for u in units if (u.task, u.task_version) == (name, task.version)})
    )
    if probe and probe not in probes:
        raise ParameterError.of("probe with results on this task", probe, probes)
    probe = probe or preferred_probe(kind_of(task), probes, settings)
    version_of_probe = probe_version(task, probe, ours)
    rows = db.rows(engine, tasks=[name], probe=probe)
    known_shots = shots_of(rows)
    first = metric_of(task, probe, settings)
    others = {row.result.metric for row in rows if row.result.task_version == task.version}
    metrics = [first, *sorted(others - {first})]
    in_scored = shots_of(scored(row for row in rows if row.result.metric == first))
    chosen = chosen_shots(shots, known_shots, in_scored, all_sizes(settings))
    models = db.models(engine)
    named = labels(models)
    stored = db.tasks(engine)
    versions = Versions.of(stored, units, settings)

    def stand(columns: list[Column]) -> Standings:
        return standings(rows, columns, [m.model_sha for m in models], units, versions)

    found = stand([column_of(task, probe, version_of_probe, chosen, m) for m in metrics])
    present = [s for s in found.rows if any(cell.row is not None for cell in s.cells)]
    seen = {s.model_sha for s in present}
    budget = budget_of(probe, settings)
    curves = None
    if budget is not None:
        sizes = [*(k for k in known_shots if k is not None), *[None] * (None in known_shots)]
        at_sizes = stand([column_of(task, probe, version_of_probe, k, first) for k in sizes])
        curves = _sizes(at_sizes, named)
    return TaskReport(
        task=task,
        versions=tuple(t.version for t in stored if t.name == name),
        probe=probe,
        probe_version=version_of_probe,
        probes=probes,
        shots=chosen,
        known_shots=known_shots,
        budget=budget,
        standings=found,
        floors=floors(found, models, named),
        shown=tuple(by_score(present, 0, found.columns[0], named, descending=None)),
        sizes=curves,
        missing=tuple(model.model_sha for model in models if model.model_sha not in seen),
        models={model.model_sha: model for model in models},
        labels=named,
        superseded=superseded_columns(found, versions).get(name, ""),
        history=versions.history(name, probe, units, db.pending(engine)),
    )


def _sizes(found: Standings, named: Mapping[str, str]) -> Sizes:
    """Columns that were skipped for all models alike become a sentence."""
    skipped: dict[int, str] = {}
    kept: list[int] = []
    for i, column in enumerate(found.columns):
        cells = [s.cells[i] for s in found.rows if s.cells[i].row is not None]
        if not cells:  # a size of an older version only
            continue
        reasons = why_skipped(cells)
        if column.shots is not None and reasons:
            skipped[column.shots] = "; ".join(reasons)
        else:
            kept.append(i)
    rows = tuple(
        Standing(s.model_sha, tuple(s.cells[i] for i in kept), s.done, s.mean_rank, s.place)
        for s in found.rows
        if any(s.cells[i].row is not None for i in kept)
    )
    columns = tuple(found.columns[i] for i in kept)
    shown = rows
    if columns:
        sizes = [column.shots for column in columns]
        last = sizes.index(default_size(sizes))
        shown = tuple(by_score(rows, last, columns[last], named, descending=None))
    return Sizes(Standings(columns, tuple(found.counting[i] for i in kept), rows), shown, skipped)


def model_report(engine: Engine, sha: str, settings: Settings) -> ModelReport:
    """Everything about one model.

    Raises:
        UnknownNameError: there is no model of that identity.
    """
    model = db.model(engine, sha)
    models, units, stored = db.models(engine), db.units(engine), db.tasks(engine)
    versions = Versions.of(stored, units, settings)
    ours = deciding(units, db.self_run_units(engine))
    scores = []
    probes = sorted({u.probe for u in units if u.model_sha == sha})
    named = labels(models)
    first = list(dict.fromkeys(standard_probe(kind_of(t), settings) for t in newest(stored)))
    for probe in sorted(probes, key=lambda p: first.index(p) if p in first else len(first)):
        answered = answered_by(probe, ours)
        asked = [t for t in newest(stored, answered) if (t.name, t.version) in answered]
        rows = ranking_rows(engine, asked, probe, settings)
        shots = chosen_shots("", shots_of(rows), shots_of(scored(rows)))
        found = standings(
            rows,
            [
                column_of(
                    task,
                    probe,
                    probe_version(task, probe, ours),
                    shots,
                    metric_of(task, probe, settings),
                )
                for task in asked
            ],
            [m.model_sha for m in models],
            units,
            versions,
        )
        mine = next(s for s in found.rows if s.model_sha == sha)
        ranked = tuple(
            sum(s.cells[i].rank is not None for s in found.rows) for i in range(len(asked))
        )
        scores.append(
            ModelScores(
                probe=probe,
                probe_version=max((c.probe_version for c in found.columns), default=1),
                tasks=tuple(asked),
                columns=found.columns,
                cells=mine.cells,
                floors=floors(found, models, named),
                ranked=ranked,
                shots=shots,
                budget=budget_of(probe, settings),
                superseded=superseded_columns(found, versions),
            )
        )
    numbers = db.rows(engine, models=[sha])
    return ModelReport(
        model=model,
        label=named[sha],
        scores=tuple(scores),
        rows=tuple(numbers),
        superseded={row.id: text for row in numbers if (text := versions.superseded(row.result))},
        tasks={task.name: task for task in newest(stored)},
    )
