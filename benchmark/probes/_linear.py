"""What the linear probes share: L2 logistic or ridge regression, and the choice of its penalty."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import linalg

from ..types import Predictions
from ._logistic import logistic_path
from ._training import Sides, choose, resampled_patients

PENALTIES = 10.0 ** np.arange(-6, 4)
"""C = 10^-6 .. 10^3, weakest last, in scikit-learn's convention (C multiplies the summed loss;
for ridge, alpha = 1 / C). Spans from "predict the prior" to "separate the training set" on
standardised features for 10 to 10,000 cases."""


def fit(
    sides: Sides,
    n_classes: int,
    seed: int,
    refits: int,
    folds: Iterable[tuple[np.ndarray, np.ndarray]] | None = None,
) -> Predictions:
    """Choose C, fit on train and on resampled patients of train, and predict test.

    Args:
        sides: scaled rows.
        n_classes: K; 0 for a regression.
        seed: of the folds and of the refits.
        refits: how many.
        folds: (train rows, held-out rows) to choose C on; None: val, or folds inside train.
    """

    def path(
        x: np.ndarray,
        target: np.ndarray,
        penalties: Sequence[float] | np.ndarray,
        out: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> np.ndarray:
        if n_classes:
            return logistic_path(x, target, penalties, out, n_classes, weight)
        return ridge_path(x, target, penalties, out, weight)

    def losses(
        x: np.ndarray, target: np.ndarray, out: np.ndarray, out_target: np.ndarray
    ) -> np.ndarray:
        values = path(x, target, PENALTIES, out)
        if not n_classes:
            return (values - out_target) ** 2
        picked = values[:, np.arange(len(out)), out_target.astype(int)]
        return -np.log(np.clip(picked, 1e-12, 1))

    c = float(PENALTIES[choose(sides, seed, losses, folds)])
    x, target = sides.train, sides.train_target
    (values,) = path(x, target, [c], sides.test)
    draws = resampled_patients(sides.train_patient, seed, refits)
    again = [path(x, target, [c], sides.test, weight)[0] for weight in draws]
    return Predictions(values, np.reshape(again, (refits, *values.shape)), {"C": c})


def ridge_path(
    x: np.ndarray,
    target: np.ndarray,
    penalties: Sequence[float] | np.ndarray,
    out: np.ndarray,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Ridge regression at all penalties from one eigendecomposition.

    Args:
        x: (n, F) training features.
        target: (n,) values.
        penalties: values of C; the squared norm of the weights is multiplied by 1 / C. The
            intercept is not penalised.
        out: (m, F) rows to predict.
        weight: (n,) how often each row counts; None: once.

    Returns:
        (penalties, m) values.
    """
    weight = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
    mean, level = np.average(x, axis=0, weights=weight), np.average(target, weights=weight)
    root = np.sqrt(weight)
    x, target, out = (x - mean) * root[:, None], (target - level) * root, out - mean
    if x.shape[0] < x.shape[1]:  # in the span of the rows
        size, axes = linalg.eigh(x @ x.T)
        known, asked = axes.T @ target, (out @ x.T) @ axes
    else:
        size, axes = linalg.eigh(x.T @ x)
        known, asked = axes.T @ (x.T @ target), out @ axes
    alpha = 1 / np.asarray(penalties, np.float64)[:, None]
    return (known / (np.maximum(size, 0) + alpha)) @ asked.T + level
