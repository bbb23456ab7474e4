"""Every model of a task's page against one of them: who is compared, and with whom."""

from dataclasses import dataclass

from ..benchmark.learning_curves import LabelShare
from ..benchmark.statistics import Difference
from .comparisons import MOST_COMPARED, Comparer
from .figures import with_floors
from .ranking import Standing
from .records import StoredRow, Unit
from .reports import Sizes, TaskReport
from .view import ParameterError


@dataclass(frozen=True)
class Rivals:
    """All compared with one model, on the metric and the size that the page ranks by."""

    reference: str
    """``model_sha``; one of ``choices``."""
    choices: tuple[str, ...]
    """Models that can be compared with: those that are ranked."""
    refused: str
    """``model_sha`` that was asked for but is not ranked here; empty: none."""
    differences: tuple[tuple[str, Difference], ...]
    """By ``model_sha``, in the order of the page."""
    shares: tuple[tuple[str, LabelShare], ...]
    """Labels needed to reach the reference's score on all of them; fewest first."""
    largest: int | None
    """Percent of labels that the reference was given for the shares; None: no shares here."""
    not_compared: tuple[str, ...]
    """Models beyond ``MOST_COMPARED``."""
    unreadable: tuple[str, ...]
    """Models whose stored predictions cannot be read."""


def rivals_of(report: TaskReport, against: str, comparer: Comparer) -> Rivals | None:
    """Compare the ranked models of a page with one of them.

    Args:
        report: of the page.
        against: ``model_sha``; empty: the best, on all labels where the sizes are percentages.
        comparer: of the same database.

    Returns:
        None where fewer than two models are ranked.

    Raises:
        ParameterError: no model has that identity.
    """
    if against and against not in report.models:
        raise ParameterError(
            f"No model to compare with has the identity '{against}'. Choose one from the list on "
            "the page, or leave 'against' out."
        )
    ranked = {s.model_sha: row for s in report.shown if (row := _ranked_row(s, 0)) is not None}
    if len(ranked) < 2:
        return None
    percent = report.budget is not None and report.budget.unit == "percent"
    most = _best_on_most(report.sizes) if percent and report.sizes is not None else None
    largest, best = most or (None, "")
    wanted = (against, best, *ranked)
    reference = next(sha for sha in wanted if sha in ranked)
    rest = [sha for sha in ranked if sha != reference]
    others = with_floors(rest, report.floors.nothing, MOST_COMPARED)
    first = report.standings.columns[0]
    found = comparer.compare(
        _unit(ranked[reference]),
        [_unit(ranked[sha]) for sha in others],
        first.metric,
        first.shots,
        shares=largest is not None,
    )
    return Rivals(
        reference=reference,
        choices=tuple(ranked),
        refused=against if against and against not in ranked else "",
        differences=tuple(
            (sha, found.differences[sha]) for sha in others if sha in found.differences
        ),
        shares=tuple(sorted(found.shares.items(), key=lambda item: item[1].share)),
        largest=largest,
        not_compared=tuple(sha for sha in ranked if sha not in (reference, *others)),
        unreadable=found.unreadable,
    )


def _ranked_row(standing: Standing, i: int) -> StoredRow | None:
    return standing.cells[i].row if standing.cells[i].rank is not None else None


def _best_on_most(sizes: Sizes) -> tuple[int, str] | None:
    """The largest size at which somebody is ranked, and the best there; of equal ones the first."""
    found: tuple[int, str] | None = None
    for i, column in enumerate(sizes.standings.columns):
        ranked = [(s.cells[i].rank, s.model_sha) for s in sizes.shown]
        ranks = [(rank, sha) for rank, sha in ranked if rank is not None]
        if column.shots is not None and ranks:
            found = (column.shots, min(ranks, key=lambda item: item[0])[1])
    return found


def _unit(row: StoredRow) -> Unit:
    return Unit(*(getattr(row.result, name) for name in Unit._fields))
