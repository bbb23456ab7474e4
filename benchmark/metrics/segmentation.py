"""How well label maps are drawn: scores of each class and case, from ``surfaces.measures``.

The score of a task is the mean over its classes of the mean over cases, so that every class counts
the same, however many cases show it. A case in which a class is neither drawn nor predicted does
not count for that class; a class that no case of a (re)sample counts for is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from . import Metric, Read

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("dice", "nsd", "hd95")
"""Columns are called ``dice_1``, ``dice_2``, ...: the class's index, without the background."""


def per_class(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Mean over cases of each class's scores.

    Args:
        rows: of a segmentation, one per case; of several repeats, each case then counts as often.

    Returns:
        By measure (K-1,), NaN where no case counts for the class.
    """
    return {
        name: _means(read(rows, name).prediction, np.ones((1, len(rows))))[0] for name in MEASURES
    }


def read(rows: pd.DataFrame, name: str) -> Read:
    """Which classes count, (N, K-1) bool, and their scores, (N, K-1), NaN where they do not."""
    columns: list[str] = []
    while f"{name}_{len(columns) + 1}" in rows.columns:
        columns.append(f"{name}_{len(columns) + 1}")
    values = rows[columns].to_numpy(np.float64)
    return Read(np.isfinite(values), values)


def _means(prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, K-1) weighted means over the cases that count; NaN where there is none."""
    counted = np.isfinite(prediction)
    total = weights @ np.where(counted, prediction, 0.0)
    size = weights @ counted.astype(np.float64)
    out = np.full(total.shape, np.nan)
    np.divide(total, size, out=out, where=size > 0)
    return out


def _mean(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(B,) mean over classes; NaN where no class counts."""
    return _means(_means(prediction, weights).T, np.ones((1, prediction.shape[1])))[0]


def _worst(target: np.ndarray) -> float:
    """Of Dice and NSD: the share that is drawn rightly without looking is taken to be none."""
    return 0.0


def _unknown(target: np.ndarray) -> float:
    """Of HD95: the sizes of the images, which bound it, are not among the targets."""
    return math.nan


def _overlap(name: str, title: str) -> Metric:
    return Metric(
        name,
        title,
        "segmentation",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=_worst,
        compute=_mean,
        read=_reader(name),
    )


def _reader(name: str) -> Callable[[pd.DataFrame], Read]:
    return partial(read, name=name)


METRICS = (
    _overlap("dice", "Dice"),
    _overlap("nsd", "Normalised surface distance"),
    Metric(
        "hd95",
        "95 % Hausdorff distance",
        "segmentation",
        higher_is_better=False,
        low=0.0,
        high=np.inf,
        scale="log",
        chance=_unknown,
        compute=_mean,
        read=_reader("hd95"),
        unit="mm",
    ),
)
