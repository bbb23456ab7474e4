"""Linear probe: L2-regularised logistic or ridge regression on frozen features.

The objective is convex, so there is one answer and a seed changes nothing in the headline fit;
how much the training patients matter is told by refits on resampled patients instead.
Regularisation is chosen on val, or by patient-grouped cross-validation inside train.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..types import Features, Kind, Predictions
from ._training import Sides, choose, resampled_patients, standardised_sides

PENALTIES = 10.0 ** np.arange(-6, 4)
"""C = 10^-6 .. 10^3, weakest last, in scikit-learn's convention (C multiplies the summed loss;
for ridge, alpha = 1 / C). Spans from "predict the prior" to "separate the training set" on
standardised features for 10 to 10,000 cases."""

TOLERANCE = 1e-6
"""Of L-BFGS. scikit-learn's default of 1e-4 leaves AUROC errors of up to 0.03 on small sets."""

COMPONENTS = 64
"""Width of ``linear_pca64``: wide embeddings must not win by width alone."""


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression (classification) or ridge (regression), optionally behind a PCA."""

    name: str
    title: str
    components: int | None = None
    version: int = 1
    kinds: tuple[Kind, ...] = ("classification", "regression")

    def __call__(self, features: Features, seed: int, refits: int) -> Predictions:
        """Fit on all training patients; see ``types.Probe``."""
        from threadpoolctl import threadpool_limits

        # one BLAS thread: two are slower at these sizes, and round sums in another order
        with threadpool_limits(1):
            sides = standardised_sides(features)
            if self.components is not None:
                sides = _project(sides, self.components)
            if features.kind == "classification":
                return _classify(sides, features.n_classes, seed, refits)
            return _regress(sides, seed, refits)


def _project(sides: Sides, components: int) -> Sides:
    """Principal components of train; refits reuse them, being about the linear layer."""
    from sklearn.decomposition import PCA

    k = min(components, *sides.train.shape)
    pca = PCA(k, svd_solver="full").fit(sides.train)
    val = pca.transform(sides.val) if len(sides.val) else np.empty((0, k))
    return Sides(
        pca.transform(sides.train),
        sides.train_target,
        sides.train_patient,
        val,
        sides.val_target,
        pca.transform(sides.test),
    )


def _span(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """The same rows in a basis of the training rows' span: exact, and n columns instead of F.

    An L2 penalty keeps the weights inside that span, so nothing is lost.
    """
    n, width = train.shape
    if width <= n:
        return [train, *others]
    _, _, basis = np.linalg.svd(train, full_matrices=False)  # (n, F)
    return [part @ basis.T for part in (train, *others)]


# --- classification --------------------------------------------------------------------------


def _classify(sides: Sides, n_classes: int, seed: int, refits: int) -> Predictions:
    def losses(
        x: np.ndarray, target: np.ndarray, out: np.ndarray, out_target: np.ndarray
    ) -> np.ndarray:
        x, out = _span(x, out)
        path = [_logistic(x, target, c, out, n_classes) for c in PENALTIES]
        picked = np.stack(path)[:, np.arange(len(out)), out_target.astype(int)]
        return -np.log(np.clip(picked, 1e-12, 1))

    c = float(PENALTIES[choose(sides, seed, losses)])
    x, test = _span(sides.train, sides.test)
    values = _logistic(x, sides.train_target, c, test, n_classes)
    draws = resampled_patients(sides.train_patient, seed, refits)
    again = [_logistic(x, sides.train_target, c, test, n_classes, w) for w in draws]
    shape = (refits, *values.shape)
    return Predictions(values, np.stack(again) if again else np.empty(shape), {"C": c})


def _logistic(
    x: np.ndarray,
    target: np.ndarray,
    c: float,
    out: np.ndarray,
    n_classes: int,
    weight: NDArray[np.integer] | None = None,
) -> np.ndarray:
    """Fit on (n, F), predict (m, K) probabilities; classes absent from ``x`` get 0."""
    from sklearn.linear_model import LogisticRegression

    if weight is not None:
        x, target, weight = x[weight > 0], target[weight > 0], weight[weight > 0]
    values = np.zeros((len(out), n_classes))
    present = np.unique(target).astype(int)
    if len(present) == 1:  # one class only: nothing to separate, predict it
        values[:, present[0]] = 1.0
        return values
    model = LogisticRegression(C=c, tol=TOLERANCE, max_iter=20_000)
    model.fit(x, target, sample_weight=weight)
    values[:, present] = model.predict_proba(out)
    return values


# --- regression ------------------------------------------------------------------------------


def _regress(sides: Sides, seed: int, refits: int) -> Predictions:
    def losses(
        x: np.ndarray, target: np.ndarray, out: np.ndarray, out_target: np.ndarray
    ) -> np.ndarray:
        x, out = _span(x, out)
        return np.stack([(_ridge(x, target, c, out) - out_target) ** 2 for c in PENALTIES])

    c = float(PENALTIES[choose(sides, seed, losses)])
    x, test = _span(sides.train, sides.test)
    values = _ridge(x, sides.train_target, c, test)
    draws = resampled_patients(sides.train_patient, seed, refits)
    again = [_ridge(x, sides.train_target, c, test, w) for w in draws]
    shape = (refits, *values.shape)
    return Predictions(values, np.stack(again) if again else np.empty(shape), {"C": c})


def _ridge(
    x: np.ndarray,
    target: np.ndarray,
    c: float,
    out: np.ndarray,
    weight: NDArray[np.integer] | None = None,
) -> np.ndarray:
    """Fit on (n, F) with alpha = 1 / C and predict (m,)."""
    from sklearn.linear_model import Ridge

    return Ridge(1 / c, solver="cholesky").fit(x, target, sample_weight=weight).predict(out)


PROBES = (
    LinearProbe("linear", "L2 logistic or ridge regression on all features"),
    LinearProbe(
        "linear_pca64",
        f"The same on {COMPONENTS} principal components fitted on train",
        components=COMPONENTS,
    ),
)
