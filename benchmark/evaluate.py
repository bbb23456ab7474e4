"""The spine: features of a task's cases -> probe -> per-case predictions -> scores.

``predict`` makes a table with one row per test case and fit; ``score`` turns such a table into
results. Recomputing a published number is calling ``score`` on the stored table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import learning_curves, metrics, statistics
from .budgets import budget_of, plan
from .errors import ProbeError
from .predictions import HEADLINE, Provenance, headline_of, stacked
from .resampling import Sample, patient_draws
from .splits import REPEATS, uses_cv
from .studies import AnyProbe, trials
from .types import Budget, Case, Features, Probe, Result, TaskCard

if TYPE_CHECKING:
    import pandas as pd

REFITS = 20
"""Refits on resampled training patients, from which the spread comes."""


@dataclass(frozen=True)
class Scores:
    """Results of one probe on one task, with the reasons to be careful with each."""

    results: tuple[Result, ...]
    flags: tuple[tuple[str, ...], ...]
    """Of each result: keys of ``statistics.FLAGS``, or a sentence."""


# --- predict -----------------------------------------------------------------------------------


def predict(
    card: TaskCard, cases: Sequence[Case], x: np.ndarray, probe: Probe, seed: int = 0
) -> pd.DataFrame:
    """Per-case predictions of one probe on one task.

    Args:
        card: of the task.
        cases: with their sides, as ``tasks.open_cases`` returns them.
        x: (N, F) features in the order of ``cases``.
        probe: any that serves the task's kind.
        seed: of what is random in the probe.

    Returns:
        One row per (repeat, refit, test case): ``repeat`` and ``fold`` (0 without
        cross-validation), ``refit`` (-1: all training patients), ``case``, ``patient``,
        ``target``, ``p0``, ``p1``, ... (class probabilities) or ``value`` (float64, so that
        recomputing is exact), and ``chosen_*``, the hyper-parameters of the fit. A probe with a
        budget has a column ``shots`` as well, and ``repeat`` is the draw.

    Raises:
        ProbeError: the probe cannot be fitted, or not one size of its budget can be drawn.
    """
    budget = budget_of(probe)
    if budget is not None:
        return _predict_on_budget(card, cases, x, probe, budget, seed)
    import pandas as pd

    share = REFITS // REPEATS if uses_cv(card) else REFITS
    parts = []
    for trial in trials(card, cases):
        refits = range(trial.repeat * share, (trial.repeat + 1) * share)
        parts.append(
            _fit(card, cases, x, trial.side, probe, seed, trial.repeat, trial.fold, refits)
        )
    return pd.concat(parts, ignore_index=True)


def _predict_on_budget(
    card: TaskCard, cases: Sequence[Case], x: np.ndarray, probe: Probe, budget: Budget, seed: int
) -> pd.DataFrame:
    """One fit per support; only the rows of its patients and of the test patients are touched."""
    import pandas as pd

    planned = plan(card, cases, budget)
    if not planned.supports:
        easiest = max(budget.sizes) if budget.unit == "percent" else min(budget.sizes)
        raise ProbeError(
            f"'{probe.name}' cannot be fitted on '{card.name}': "
            f"{planned.skipped.get(easiest, 'there is no test patient')}. Use a larger part of the "
            "data set."
        )
    parts = []
    for support in planned.supports:
        rows = np.concatenate([support.train, support.test])
        split = np.array(["train"] * len(support.train) + ["test"] * len(support.test))
        part = _fit(
            card,
            [cases[row] for row in rows],
            x[rows],
            split,
            probe,
            seed,
            support.draw,
            support.fold,
            range(0),
        )
        parts.append(part.assign(shots=support.size))
    return pd.concat(parts, ignore_index=True)


def has_area(probe: AnyProbe) -> bool:
    """Whether the mean over the probe's curve is published."""
    budget = budget_of(probe)
    return budget is not None and budget.area


def skipped_sizes(card: TaskCard, cases: Sequence[Case], probe: AnyProbe) -> dict[str, str]:
    """Sizes of the probe's budget that cannot be drawn on this task, and why."""
    budget = budget_of(probe)
    skipped = {} if budget is None else plan(card, cases, budget).skipped
    return {str(size): reason for size, reason in skipped.items()}


def _fit(
    card: TaskCard,
    cases: Sequence[Case],
    x: np.ndarray,
    split: np.ndarray,
    probe: Probe,
    seed: int,
    repeat: int,
    held_out: int,
    refits: range,
) -> pd.DataFrame:
    """One call of the probe; the targets of test cases are hidden from it."""
    import pandas as pd

    classification = card.kind == "classification"
    target = np.array([case.target for case in cases], np.int64 if classification else float)
    patient = np.array([case.patient for case in cases])
    test = split == "test"
    hidden = np.where(test, -1 if classification else math.nan, target)
    features = Features(x, hidden, split, patient, card.kind, len(card.classes))
    predictions = probe(features, seed, len(refits))
    who = {
        "case": [case.id for case, is_test in zip(cases, test, strict=True) if is_test],
        "patient": patient[test],
        "target": target[test],
    }
    fits = {HEADLINE: predictions.values, **dict(zip(refits, predictions.refits, strict=True))}
    tables = []
    for refit, values in fits.items():
        columns = (
            {f"p{k}": values[:, k] for k in range(values.shape[1])}
            if classification
            else {"value": values}
        )
        tables.append(
            pd.DataFrame(
                {
                    "repeat": repeat,
                    "fold": held_out,
                    "refit": refit,
                    **who,
                    **columns,
                    **{f"chosen_{name}": value for name, value in predictions.chosen.items()},
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


# --- score -------------------------------------------------------------------------------------


class _Number(NamedTuple):
    """One score before it becomes a row."""

    metric: metrics.Metric
    shots: int | None
    interval: statistics.Interval
    spread: float
    n_test: int


def score(table: pd.DataFrame, provenance: Provenance) -> Scores:
    """All metrics of the task's kind, with intervals, from per-case predictions.

    A probe with a budget gives a row per metric and size, the sizes that could not be drawn
    included (without a score, and with the reason as a flag), and the area where it has one.
    """
    if "shots" in table.columns:
        numbers = list(_scored_on_budget(table, provenance))
    else:
        numbers = list(_scored(table, provenance))
    several = provenance.cv or "shots" in table.columns or len(set(table["repeat"])) > 1
    results = tuple(
        Result(
            model=provenance.model,
            model_sha=provenance.model_sha,
            task=provenance.task,
            task_version=provenance.task_version,
            probe=provenance.probe,
            probe_version=provenance.probe_version,
            metric=number.metric.name,
            shots=number.shots,
            seed="all" if several else 0,
            score=_finite(number.interval.score),
            low=_finite(number.interval.low),
            high=_finite(number.interval.high),
            spread=_finite(number.spread),
            n_test=number.n_test,
            subset=provenance.subset,
            seconds=provenance.seconds,
            device=provenance.device,
            software=provenance.software,
            dataset_sha=provenance.dataset_sha,
            split_sha=provenance.split_sha,
        )
        for number in numbers
    )
    return Scores(results, tuple(tuple(number.interval.flags) for number in numbers))


def _scored(table: pd.DataFrame, provenance: Provenance) -> Iterator[_Number]:
    """Trained on all training patients: one number per metric."""
    headline = headline_of(table)
    for metric in metrics.for_kind(provenance.kind):
        tested = stacked(headline, metric)
        if is_nothing(tested.values):
            continue
        if provenance.cv:
            interval = statistics.cv_interval(
                metric,
                tested.target,
                tested.values,
                tested.patient,
                tested.fold,
                provenance.width,
            )
        else:
            interval = statistics.score_interval(
                metric, tested.target, tested.values, tested.patient
            )
        yield _Number(
            metric, None, interval, _spread(metric, table, provenance.cv), len(tested.target)
        )


def is_nothing(values: np.ndarray) -> bool:
    """Whether the cases hold nothing that a metric could measure, such as pairs no landmarks."""
    return values.dtype.kind == "f" and values.size > 0 and bool(np.isnan(values).all())


SKIPPED = "skipped: "
"""How the flag of a size begins that could not be drawn; the reason follows."""


def _scored_on_budget(table: pd.DataFrame, provenance: Provenance) -> Iterator[_Number]:
    """One number per metric and size; the spread is the SD over draws of the support."""
    n_test = len(set(table["case"]))
    width = provenance.width if provenance.cv else None
    for metric in metrics.for_kind(provenance.kind):
        curve = curve_of(table, metric)
        found: dict[int | None, learning_curves.Runs] = {**curve.runs}
        if provenance.area and len(curve.runs) > 1:
            found[None] = learning_curves.area(curve.runs)
        for shots, runs in found.items():
            interval = learning_curves.runs_interval(
                metric, runs, curve.n_classes, curve.counts, curve.who, width
            )
            spread = float(np.std(runs.once, ddof=1)) if len(runs.once) > 1 else math.nan
            yield _Number(metric, shots, interval, spread, n_test)
        for shots, reason in provenance.skipped.items():
            flags = (f"{SKIPPED}{reason}",)
            nothing = statistics.Interval(math.nan, math.nan, math.nan, flags)
            yield _Number(metric, int(shots), nothing, math.nan, n_test)


class Curve(NamedTuple):
    """Scores of one metric by training size, on draws of patients that all models share."""

    metric: metrics.Metric
    runs: Mapping[int, learning_curves.Runs]
    counts: np.ndarray
    """(B, G) draws of patients."""
    who: Sample
    n_classes: int


def curve_of(table: pd.DataFrame, metric: metrics.Metric) -> Curve:
    """Score every draw of every size; ``table`` is of a probe with a budget."""
    sizes = sorted(set(table["shots"].tolist()))
    by_size = {size: stacked(table.query(f"shots == {size}"), metric) for size in sizes}
    first = next(iter(by_size.values()))
    who = statistics.sample_of(metric, first.target, first.values[0], first.patient)
    counts = patient_draws(who, statistics.DRAWS, seed=0)
    runs = {
        size: learning_curves.runs(metric, t.target, t.values, t.fold, counts, who)
        for size, t in by_size.items()
    }
    return Curve(metric, runs, counts, who, first.values.shape[-1])


def _spread(metric: metrics.Metric, table: pd.DataFrame, cv: bool) -> float:
    """SD of the score over refits; under cross-validation a refit is one repeat's folds."""
    scores = []
    for _, part in table.query(f"refit != {HEADLINE}").groupby("refit", sort=True):
        tested = stacked(part, metric)
        scores.append(metric(tested.target, tested.values[0], fold=tested.fold[0]))
    if not scores and not cv:  # trained with several seeds instead
        tested = stacked(headline_of(table), metric)
        scores = [metric(tested.target, values) for values in tested.values]
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
