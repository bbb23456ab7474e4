"""Who trains a probe that may see only a few of the training patients, and who tests it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .errors import PatientError
from .splits import FOLDS, fold, support, uses_cv
from .studies import AnyProbe
from .types import Budget, Case, Change, TaskCard

FEWEST = 2
"""Patients per class (of a regression: patients) below which a percentage is skipped: with one of
a class nothing can be held out inside the support."""


class Support(NamedTuple):
    """One draw: rows of the task's cases."""

    size: int
    draw: int
    fold: int
    """That is tested; 0 without cross-validation."""
    train: np.ndarray
    """Rows of the support: all cases of the drawn patients."""
    test: np.ndarray
    """Rows that are predicted. Validation cases are in neither."""


@dataclass(frozen=True)
class Plan:
    """All draws of a protocol on one task."""

    supports: tuple[Support, ...]
    skipped: Mapping[int, str]
    """By size, why it cannot be drawn."""


def budget_of(probe: AnyProbe) -> Budget | None:
    """The probe's budget; None for one that trains on all training patients."""
    return getattr(probe, "budget", None)


def changes_of(probe: AnyProbe) -> tuple[Change, ...]:
    """Why the probe's version was raised."""
    return getattr(probe, "changes", ())


def plan(card: TaskCard, cases: Sequence[Case], budget: Budget) -> Plan:
    """Draw the supports of every size.

    Under cross-validation draw d has the folds of repeat d, so that draws vary the test side too.
    A size that one draw cannot fill is skipped in all, so that all draws mean the same.

    Args:
        card: of the task.
        cases: with their sides, as ``tasks.open_cases`` returns them.
        budget: of the probe.
    """
    supports: list[Support] = []
    skipped: dict[int, str] = {}
    patient = np.array([case.patient for case in cases])
    # values have no classes: there all patients are of one
    classes: dict[str, set[int]] = defaultdict(set)
    for case in cases:
        classes[case.patient].add(_class(card, case))
    for size in budget.sizes:
        try:
            supports += list(_draws(card, cases, patient, classes, budget, size))
        except PatientError as error:
            skipped[size] = str(error)
    return Plan(tuple(s for s in supports if s.size not in skipped), skipped)


def _class(card: TaskCard, case: Case) -> int:
    return int(case.target) if card.kind == "classification" else 0  # type: ignore[arg-type]


def _draws(
    card: TaskCard,
    cases: Sequence[Case],
    patient: np.ndarray,
    classes: Mapping[str, Collection[int]],
    budget: Budget,
    size: int,
) -> Iterator[Support]:
    cv = uses_cv(card)
    side = np.array([case.split for case in cases])
    everybody = budget.unit == "percent" and size == 100
    # on one split all draws of everybody are one
    for draw in range(1 if everybody and not cv else budget.draws):
        folds = np.array([fold(card, draw, p) for p in patient]) if cv else np.zeros(len(cases))
        for k in range(FOLDS if cv else 1):
            test = folds == k if cv else side == "test"
            pool = ~test if cv else side == "train"
            if test.any():
                chosen = _patients(card, draw, sorted(set(patient[pool])), classes, budget, size)
                train = pool & np.isin(patient, chosen)
                yield Support(size, draw, k, np.flatnonzero(train), np.flatnonzero(test))


def _patients(
    card: TaskCard,
    draw: int,
    pool: Sequence[str],
    classes: Mapping[str, Collection[int]],
    budget: Budget,
    size: int,
) -> list[str]:
    """The patients of one support.

    A patient with cases of several classes is drawn for each of them, so that a class can get
    more patients than asked for, never fewer.

    Raises:
        PatientError: a class has too few; the message is what the board shows.
    """
    chosen: list[str] = []
    named = card.classes if card.kind == "classification" else ()  # else all are of one class
    for label in range(max(1, len(named))):
        members = [p for p in pool if label in classes[p]]
        if budget.unit == "percent":
            k, least = round(size / 100 * len(members)), FEWEST
            asked = f"{size} % of them are {k}, at least {FEWEST} are needed"
        else:
            k, least = size, size
            asked = f"{size} are needed"
        if min(k, len(members)) < least:
            who = f"class '{named[label]}' has" if named else "there are"
            raise PatientError(f"{who} {len(members)} training patients, {asked}")
        chosen += support(card, draw, members, [label] * len(members), k)
    return chosen
