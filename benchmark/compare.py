"""Paired comparisons of models on the same test patients, from stored predictions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from . import learning_curves, metrics, statistics
from .evaluate import Curve, curve_of
from .learning_curves import LabelShare
from .predictions import Provenance, headline_of, stacked

if TYPE_CHECKING:
    import pandas as pd

CurveOf = Callable[["pd.DataFrame", metrics.Metric], Curve]
"""``evaluate.curve_of``, or the same with a memory: a curve takes about a second."""


def against(
    reference: str,
    stored: "Mapping[str, tuple[pd.DataFrame, Provenance]]",
    metric_name: str,
    shots: int | None = None,
    curve: CurveOf = curve_of,
) -> dict[str, statistics.Difference]:
    """Score minus the reference's score, with interval and p-value, for every other model.

    Args:
        reference: key of ``stored``.
        stored: predictions of one task, probe and split by model.
        metric_name: which metric.
        shots: of a probe with a budget, the size; None: the mean over the curve.
        curve: how the scores of a probe with a budget are found.

    Returns:
        By model; p-values are not yet adjusted: apply ``statistics.holm`` across all that is
        shown. Models that were tested on other cases than the reference are left out, because
        they cannot be paired with it; so are those that lack that size.
    """
    metric = metrics.get(metric_name)
    table, provenance = stored[reference]
    if "shots" in table.columns:
        return dict(_on_budget(reference, stored, metric, shots, curve))
    ours = stacked(headline_of(table), metric)
    differences = {}
    for name, (other_table, other) in _paired(reference, stored):
        theirs = stacked(headline_of(other_table), metric).values
        if provenance.cv:
            width = max(provenance.width, other.width)
            differences[name] = statistics.cv_difference(
                metric, ours.target, theirs, ours.values, ours.patient, ours.fold, width
            )
        else:
            differences[name] = statistics.paired_difference(
                metric, ours.target, theirs, ours.values, ours.patient
            )
    return differences


def _paired(
    reference: str, stored: "Mapping[str, tuple[pd.DataFrame, Provenance]]"
) -> "Iterator[tuple[str, tuple[pd.DataFrame, Provenance]]]":
    """The other models that were tested on the reference's cases."""
    _, ours = stored[reference]
    for name, (table, other) in stored.items():
        same = (other.dataset_sha, other.split_sha) == (ours.dataset_sha, ours.split_sha)
        if name != reference and same:
            yield name, (table, other)


def _on_budget(
    reference: str,
    stored: "Mapping[str, tuple[pd.DataFrame, Provenance]]",
    metric: metrics.Metric,
    shots: int | None,
    curve: CurveOf,
) -> Iterator[tuple[str, statistics.Difference]]:
    table, provenance = stored[reference]
    ours = curve(table, metric)

    def at(runs: Mapping[int, learning_curves.Runs]) -> learning_curves.Runs | None:
        return learning_curves.area(runs) if shots is None else runs.get(shots)

    for name, (other_table, other) in _paired(reference, stored):
        a, b = at(curve(other_table, metric).runs), at(ours.runs)
        if a is not None and b is not None:
            width = max(provenance.width, other.width) if provenance.cv else None
            yield (
                name,
                learning_curves.runs_difference(
                    metric, a, b, ours.n_classes, ours.counts, ours.who, width
                ),
            )


def label_shares(
    reference: str,
    stored: "Mapping[str, tuple[pd.DataFrame, Provenance]]",
    metric_name: str,
    curve: CurveOf = curve_of,
) -> dict[str, LabelShare]:
    """The share of labels at which each other model reaches the reference's full-data score.

    Args:
        reference: key of ``stored``.
        stored: predictions of ``label_efficiency`` on one task by model.
        metric_name: which metric.
        curve: how the scores are found.

    Returns:
        By model; those without a curve on the reference's cases are left out.
    """
    metric = metrics.get(metric_name)
    table, provenance = stored[reference]
    theirs = curve(table, metric)
    full = max(theirs.runs)
    shares: dict[str, LabelShare] = {}
    for name, (other_table, other) in _paired(reference, stored):
        ours = curve(other_table, metric)
        factor, flags = 1.0, statistics.few(metric, theirs.who)
        if provenance.cv:
            width = max(provenance.width, other.width)
            scores = tuple(float(c.runs[full].once.mean()) for c in (ours, theirs))
            n_classes = theirs.n_classes
            factor, flags = statistics.cv_factor(
                "difference", metric, n_classes, theirs.who, width, scores
            )
            flags = tuple(dict.fromkeys((*flags, "uncalibrated")))  # not simulated for budgets
        share = learning_curves.label_share(
            metric, ours.runs, theirs.runs[full], theirs.who.n_patients, factor
        )
        if share is not None:
            shares[name] = replace(share, flags=flags)
    return shares


def adjusted(
    families: Mapping[str, Mapping[str, statistics.Difference]],
) -> dict[str, dict[str, statistics.Difference]]:
    """The same differences with p-values and marks adjusted by Holm across all of them."""
    flat = [(a, b) for a, members in families.items() for b in members]
    p_values = statistics.holm([families[a][b].p for a, b in flat])
    out: dict[str, dict[str, statistics.Difference]] = {a: {} for a in families}
    for (a, b), p in zip(flat, p_values, strict=True):
        out[a][b] = replace(families[a][b], p=float(p))
    return out
