"""How well one image is brought onto another: one number per pair, of which the mean is taken.

A pair that lacks a truth, such as landmarks, is left out of that metric. Chance is where the pairs
start: what leaving the images as they are scores.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from . import Metric, Read, Scale

if TYPE_CHECKING:
    import pandas as pd

BEFORE = "_before"
"""End of the columns that say what a pair scores before it is registered."""


def read(rows: pd.DataFrame, name: str) -> Read:
    """What pairs score before (N,), and after (N,); NaN where there is no such truth.

    Before registration no space is deformed: the columns of smoothness have no other start than 0.
    """
    after = rows[name].to_numpy(np.float64)
    before = f"{name}{BEFORE}"
    start = rows[before].to_numpy(np.float64) if before in rows.columns else np.zeros(len(after))
    return Read(start, after)


def _mean(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    known = np.isfinite(prediction)
    total = weights @ np.where(known, prediction, 0.0)
    size = weights @ known.astype(np.float64)
    out = np.full(len(weights), np.nan)
    np.divide(total, size, out=out, where=size > 0)
    return out


def _start(target: np.ndarray) -> float:
    known = np.asarray(target, np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else float("nan")


def _metric(
    name: str,
    column: str,
    title: str,
    *,
    better_if_higher: bool,
    high: float,
    scale: Scale,
    unit: str,
) -> Metric:
    return Metric(
        name,
        title,
        "registration",
        higher_is_better=better_if_higher,
        low=0.0,
        high=high,
        scale=scale,
        chance=_start,
        compute=_mean,
        read=partial(read, name=column),
        unit=unit,
    )


def _distance(name: str, column: str, title: str) -> Metric:
    return _metric(name, column, title, better_if_higher=False, high=np.inf, scale="log", unit="mm")


METRICS = (
    _metric(
        "warped_dice",
        "dice",
        "Dice of warped labels",
        better_if_higher=True,
        high=1.0,
        scale="proportion",
        unit="",
    ),
    _distance("warped_hd95", "hd95", "95 % Hausdorff distance of warped labels"),
    _distance("tre", "tre", "Target registration error of landmarks"),
    _distance("epe", "epe", "End-point error of the displacement"),
    _metric(
        "sd_log_jacobian",
        "sd_log_jacobian",
        "SD of the logarithm of the Jacobian determinant",
        better_if_higher=False,
        high=np.inf,
        scale="log",
        unit="",
    ),
    _metric(
        "folding",
        "folding",
        "Share of space that is folded",
        better_if_higher=False,
        high=1.0,
        scale="proportion",
        unit="",
    ),
)
