"""Whether the most similar scans of other patients are of the same class.

Each query has its own score; a metric is the mean over queries of a class, then over classes, so
that a frequent class counts no more than a rare one. A class that nobody else in the gallery has
cannot be found and is left out, as is one without queries in a (re)sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import Metric, Read

if TYPE_CHECKING:
    import pandas as pd

RANKS = (1, 5, 10)
"""k of recall at k: whether at least one of the first k is of the query's class, as in metric
learning (Jegou et al., TPAMI 33 (2011) 117, section 5.1; Musgrave et al., ECCV 2020)."""


def _read(column: str) -> Callable[[pd.DataFrame], Read]:
    """Target (N, 3): class, how many of that class the gallery holds, how many it holds in all."""

    def read(rows: pd.DataFrame) -> Read:
        target = rows[["target", "relevant", "gallery"]].to_numpy(np.int64)
        return Read(target, rows[column].to_numpy(np.float64))

    return read


def by_class(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Mean over classes of the mean over queries; NaN in ``prediction`` is not counted."""
    counted = np.isfinite(prediction)
    classes = np.unique(target[counted, 0])
    if not len(classes):
        return np.full(len(weights), np.nan)
    members = (target[:, :1] == classes) & counted[:, None]  # (N, C)
    size = weights @ members
    total = weights @ (members * np.where(counted, prediction, 0.0)[:, None])
    mean = np.zeros(size.shape)
    np.divide(total, size, out=mean, where=size > 0)
    present = (size > 0).sum(1)
    score = np.full(len(weights), np.nan)
    np.divide(mean.sum(1), present, out=score, where=present > 0)
    return score


def _chance(of_query: Callable[[int, int], float]) -> Callable[[np.ndarray], float]:
    """Mean by class of what a random order of the gallery scores, exactly."""

    def chance(target: np.ndarray) -> float:
        known: dict[tuple[int, int], float] = {}
        for _, relevant, gallery in np.unique(target, axis=0).tolist():
            known[relevant, gallery] = of_query(relevant, gallery)
        expected = np.array([known[r, n] for r, n in target[:, 1:].tolist()])
        once = np.ones((1, len(target)))
        return float(by_class(target, expected, once, np.zeros(len(target)))[0])

    return chance


def random_precision(relevant: int, gallery: int) -> float:
    """Average precision of a random order, in expectation.

    The k-th place is relevant with the same chance R / n for every k; given that it is, k - 1
    others are before it, each relevant with chance (R - 1) / (n - 1).

    >>> random_precision(1, 2)
    0.75
    """
    if not relevant:
        return float("nan")
    place = np.arange(1, gallery + 1)
    before = (place - 1) * (relevant - 1) / max(1, gallery - 1)
    return float(((1 + before) / place).mean())


def random_hit(relevant: int, gallery: int, k: int) -> float:
    """Chance that at least one of the first k of a random order is relevant.

    >>> random_hit(1, 4, 2)
    0.5
    """
    if not relevant:
        return float("nan")
    k = min(k, gallery)
    return 1 - float(
        np.prod(np.maximum(gallery - relevant - np.arange(k), 0) / (gallery - np.arange(k)))
    )


def _recall(k: int) -> Metric:
    return Metric(
        f"recall_{k}",
        f"Recall at {k}",
        "retrieval",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=_chance(lambda relevant, gallery: random_hit(relevant, gallery, k)),
        compute=by_class,
        read=_read(f"recall_{k}"),
    )


METRICS = (
    Metric(
        "map",
        "Mean average precision",
        "retrieval",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=_chance(random_precision),
        compute=by_class,
        read=_read("ap"),
    ),
    *(_recall(k) for k in RANKS),
)
