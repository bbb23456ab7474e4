"""The charts of a task's page, made of its report."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..benchmark.types import Budget
from . import printing
from .board import unit_of
from .charts import Point, Reference, dot_and_whisker
from .curves import MOST_CURVES, Curve, learning_curves_svg
from .ranking import Standing
from .reports import TaskReport
from .sizes import axis_title, size_in_words

MOST_POINTS = 40
"""Models in a chart; a longer one is no picture any more, and the table beside it has all."""

REFERENCES = {
    "auroc": Reference(0.5, "guessing"),
    "r2": Reference(0.0, "predicting the mean"),
}


@dataclass(frozen=True)
class CurvesFigure:
    """Learning curves, and who is not among them."""

    svg: Markup
    left_out: tuple[str, ...]
    """Labels of models that have scores but are not drawn."""
    chosen_by: str
    """The size by which the best were chosen, in words."""


def scores_figure(report: TaskReport) -> Markup:
    """Scores at the chosen size; empty without any."""
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
        title=f"{_subject(report)}{_size(column.shots, report.budget)}",
        metric=column.metric,
        unit=unit_of(report.task, column.metric),
        reference=REFERENCES.get(column.metric),
    )


def curves_figure(report: TaskReport) -> CurvesFigure | None:
    """Scores by training size of the best models and the floors; None without any."""
    if report.sizes is None:
        return None
    curves = {
        standing.model_sha: curve
        for standing in report.sizes.shown
        if (curve := _curve(standing, report)).points
    }
    if not curves:
        return None
    drawn = with_floors(list(curves), report.floors.nothing, MOST_CURVES)
    svg = learning_curves_svg(
        [curves[sha] for sha in drawn],
        title=f"{_subject(report)}, by training size",
        metric=report.sizes.standings.columns[0].metric,
        x_label=axis_title(report.budget),
    )
    last = report.sizes.standings.columns[-1].shots
    return CurvesFigure(
        svg,
        tuple(report.labels[sha] for sha in curves if sha not in drawn),
        size_in_words(last, report.budget),
    )


def with_floors(shas: Sequence[str], nothing: Collection[str], most: int) -> list[str]:
    """The first so many models, in their order.

    Those that learn nothing are among them whatever their place: any other has to beat them, so
    no picture leaves them out.
    """
    floors = [sha for sha in shas if sha in nothing][:most]
    others = [sha for sha in shas if sha not in floors][: most - len(floors)]
    return [sha for sha in shas if sha in floors or sha in others]


def _curve(standing: Standing, report: TaskReport) -> Curve:
    rows = [
        cell.row.result for cell in standing.cells if cell.row is not None and not cell.superseded
    ]
    points = [
        (r.shots, r.score, r.low, r.high)
        for r in rows
        if r.shots is not None and r.score is not None
    ]
    label = report.labels[standing.model_sha]
    return Curve(f"{label} (subset)" if any(r.subset for r in rows) else label, points)


def _subject(report: TaskReport) -> str:
    column = report.standings.columns[0]
    return f"{printing.metric_title(column.metric)} on {column.task}, {report.probe} probe"


def _size(shots: int | None, budget: Budget | None) -> str:
    return f", {size_in_words(shots, budget)}" if budget else ""
