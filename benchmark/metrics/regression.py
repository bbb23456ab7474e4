"""How far predicted values are from the true ones.

R2 and Pearson r of constants are NaN (scikit-learn calls R2 of a constant target 0 or 1).
"""

import numpy as np

from . import Metric

_ROUNDING = 1e-12
"""A variance below this share of the largest square is the rounding error of a constant."""


def _centered(values: np.ndarray) -> np.ndarray:
    """Shift by a member, so that a constant becomes exactly 0 and sums of squares stay accurate."""
    return values - np.median(values) if len(values) % 2 else values - np.sort(values)[0]


def _covariance(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of products about the means, (B,); exactly 0 where it is a constant's rounding error."""
    total = weights.sum(1)
    total = np.where(total > 0, total, 1.0)
    raw = weights @ (x * y)
    about = raw - (weights @ x) * (weights @ y) / total
    scale = total * np.sqrt((x * x).max(initial=0.0) * (y * y).max(initial=0.0))
    return np.where(np.abs(about) > _ROUNDING * scale, about, 0.0)


def _mae(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    return weights @ np.abs(target - prediction) / weights.sum(1)


def _r2(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    y = _centered(np.asarray(target, np.float64))
    total = _covariance(y, y, weights)
    left = weights @ (target - prediction) ** 2
    share = np.full(len(weights), np.nan)
    np.divide(left, total, out=share, where=total > 0)
    return 1 - share


def _pearson(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    y, p = _centered(np.asarray(target, np.float64)), _centered(prediction)
    yy, pp, yp = (np.zeros(len(weights)) for _ in range(3))
    for f in np.unique(fold):
        here = fold == f
        w = weights[:, here]
        yy += _covariance(y[here], y[here], w)
        pp += _covariance(p[here], p[here], w)
        yp += _covariance(y[here], p[here], w)
    r = np.full(len(weights), np.nan)
    np.divide(yp, np.sqrt(yy) * np.sqrt(pp), out=r, where=(yy > 0) & (pp > 0))
    return np.clip(r, -1, 1)


METRICS = (
    Metric(
        "mae",
        "Mean absolute error",
        "regression",
        higher_is_better=False,
        low=0.0,
        high=np.inf,
        scale="log",
        chance=lambda target: float(np.abs(target - np.median(target)).mean()),
        compute=_mae,
    ),
    Metric(
        "r2",
        "R²",
        "regression",
        higher_is_better=True,
        low=-np.inf,
        high=1.0,
        scale="log_unexplained",
        chance=lambda target: 0.0,
        compute=_r2,
    ),
    Metric(
        "pearson",
        "Pearson r",
        "regression",
        higher_is_better=True,
        low=-1.0,
        high=1.0,
        scale="fisher_z",
        chance=lambda target: 0.0,
        compute=_pearson,
    ),
)
