"""How many lesions are found at how many false alarms: the FROC curve and its mean, the CPM.

By the rules of LUNA16 (Setio et al., Medical Image Analysis 42 (2017) 1, section 3.3 and its
evaluation script): sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan; a lesion
counts once, with the best of the candidates that hit it, the others being neither right nor wrong;
scans without a lesion count for the false positives. In a draw of patients all candidates of a
scan count as often as the scan. Of a cross-validation, the candidates of one fold are thresholded
by themselves, as another fold's model has scores of its own, and the lesions found are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from . import Metric, Read

if TYPE_CHECKING:
    import pandas as pd

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan."""


def read(rows: pd.DataFrame) -> Read:
    """The columns ``scores``, ``found`` and ``lesions``.

    Returns:
        Lesions of each case (N,); candidates of each case, (N,) of (M, 2) float64: score, and
        whether it is the first that hits its lesion. Further hits are left out.
    """
    candidates = np.empty(len(rows), object)
    for row, (scores, found) in enumerate(zip(rows["scores"], rows["found"], strict=True)):
        candidates[row] = _counted(np.asarray(scores, np.float64), np.asarray(found, np.int64))
    return Read(rows["lesions"].to_numpy(np.int64), candidates)


def _counted(scores: np.ndarray, found: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], found[order]
    first = np.zeros(len(found), bool)
    first[np.unique(found, return_index=True)[1]] = True
    kept = first | (found < 0)
    return np.column_stack([scores[kept], found[kept] >= 0])


def _sensitivity(
    target: np.ndarray,
    prediction: np.ndarray,
    weights: np.ndarray,
    fold: np.ndarray,
    rates: Sequence[float],
) -> np.ndarray:
    """(B,) mean sensitivity over rates; NaN in a draw without a lesion."""
    from ._froc import found_at_rates

    found = np.zeros(len(weights))
    for f in np.unique(fold):
        rows = np.flatnonzero(fold == f)
        parts = [np.asarray(prediction[row], np.float64).reshape(-1, 2) for row in rows]
        case = np.repeat(rows, [len(part) for part in parts])
        score, right = np.concatenate(parts).T
        order = np.argsort(-score, kind="stable")
        score = score[order]
        new = np.ones(len(score), bool)
        new[1:] = score[1:] != score[:-1]
        scans = weights[:, rows].sum(1)
        args = (weights, scans, case[order], right[order] > 0, new, np.asarray(rates, np.float64))
        found += found_at_rates(*args).mean(1)
    lesions = weights @ np.asarray(target, np.float64)
    out = np.full(len(weights), np.nan)
    np.divide(found, lesions, out=out, where=lesions > 0)
    return out


def _metric(name: str, title: str, rates: Sequence[float]) -> Metric:
    return Metric(
        name,
        title,
        "detection",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        # who marks nothing finds nothing; what a guess at the usual place finds is for the board's
        # floor to show, an encoder whose maps are constant
        chance=lambda target: 0.0,
        compute=partial(_sensitivity, rates=rates),
        read=read,
    )


METRICS = (
    _metric("cpm", "CPM", RATES),
    _metric("sensitivity_1", "Sensitivity at 1 false positive per scan", (1.0,)),
    _metric("sensitivity_8", "Sensitivity at 8 false positives per scan", (8.0,)),
)
