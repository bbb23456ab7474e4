"""Floors: the best score of those models that learn nothing, which any other has to beat."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from . import printing
from .ranking import Cell, Column, Standings
from .records import StoredModel


@dataclass(frozen=True)
class Floor:
    """Of one column."""

    model_sha: str
    label: str
    """Of the model, as pages print it."""
    score: float
    text: str
    """The score as it is printed, without its unit."""


@dataclass(frozen=True)
class Floors:
    """Of all columns that are shown."""

    columns: tuple[Column, ...]
    of: tuple[Floor | None, ...]
    """By column; None where no model that learns nothing is ranked."""
    nothing: frozenset[str]
    """``model_sha`` of the models that learn nothing."""

    def under(self, sha: str, cell: Cell, i: int) -> Floor | None:
        """The floor of column ``i`` where this cell of a model is ranked and worse, else None.

        Of the models that learn nothing only the best is a floor; the others are not told so.
        """
        floor = self.of[i]
        if floor is None or cell.rank is None or cell.row is None or sha in self.nothing:
            return None
        score = cell.row.result.score
        if score is None:
            return None
        higher = self.columns[i].higher_is_better
        return floor if (score < floor.score if higher else score > floor.score) else None


def without_parameters(models: Iterable[StoredModel]) -> frozenset[str]:
    """``model_sha`` of the models that learn nothing.

    Only of architectures that ship with this package the parameters are all counted: a graph may
    hide its weights in constants, and an encoder that is no PyTorch module need not state them.
    """
    return frozenset(
        m.model_sha
        for m in models
        if m.card.get("parameters") == 0 and "architecture" in m.manifest
    )


def floors(found: Standings, models: Iterable[StoredModel], labels: Mapping[str, str]) -> Floors:
    """The floors of a table.

    Args:
        found: all models, also those that the page does not show.
        models: whose cards say how many parameters they have.
        labels: names to print, by ``model_sha``.
    """
    nothing = without_parameters(models)
    columns = range(len(found.columns))
    return Floors(found.columns, tuple(_floor(found, i, nothing, labels) for i in columns), nothing)


def _floor(
    found: Standings, i: int, nothing: frozenset[str], labels: Mapping[str, str]
) -> Floor | None:
    best: tuple[float, str, Floor] | None = None
    for standing in found.rows:
        cell, sha = standing.cells[i], standing.model_sha
        if sha not in nothing or cell.rank is None or cell.row is None:
            continue
        r = cell.row.result
        if r.score is not None and (best is None or (cell.rank, labels[sha]) < best[:2]):
            text = printing.score_text(r.metric, r.score, r.low, r.high)
            best = (cell.rank, labels[sha], Floor(sha, labels[sha], r.score, text))
    return best[2] if best else None
