"""Paired differences between models on the same test patients, from stored predictions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from . import metrics, statistics
from .evaluate import Provenance, headline_of, stacked

if TYPE_CHECKING:
    import pandas as pd


def against(
    reference: str, stored: "Mapping[str, tuple[pd.DataFrame, Provenance]]", metric_name: str
) -> dict[str, statistics.Difference]:
    """Score minus the reference's score, with interval and p-value, for every other model.

    Args:
        reference: key of ``stored``.
        stored: predictions of one task, probe and split by model.
        metric_name: which metric.

    Returns:
        By model; p-values are not yet adjusted: apply ``statistics.holm`` across all that is
        shown. Models that were tested on other cases than the reference are left out, because
        they cannot be paired with it.
    """
    metric = metrics.get(metric_name)
    table, provenance = stored[reference]
    ours = stacked(headline_of(table))
    differences = {}
    for name, (other_table, other) in stored.items():
        same_cases = (other.dataset_sha, other.split_sha) == (
            provenance.dataset_sha,
            provenance.split_sha,
        )
        if name == reference or not same_cases:
            continue
        theirs = stacked(headline_of(other_table)).values
        if provenance.cv:
            width = max(provenance.width, other.width)
            differences[name] = statistics.cv_difference(
                metric, ours.target, theirs, ours.values, ours.patient, ours.fold, width
            )
        else:
            differences[name] = statistics.paired_difference(
                metric, ours.target, theirs[0], ours.values[0], ours.patient
            )
    return differences


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
