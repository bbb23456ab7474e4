"""Linear probe: L2-regularised logistic or ridge regression on frozen features.

The objective is convex, so there is one answer and a seed changes nothing in the headline fit;
how much the training patients matter is told by refits on resampled patients instead.
Regularisation is chosen on val, or by patient-grouped cross-validation inside train.
"""

from dataclasses import dataclass

import numpy as np

from ..types import Features, Kind, Predictions
from ._linear import fit
from ._training import Sides, standardised_sides

COMPONENTS = 64
"""Width of ``linear_pca64``: wide embeddings must not win by width alone."""


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression (classification) or ridge (regression), optionally behind a PCA."""

    name: str
    title: str
    cost: str
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
            return fit(sides, features.n_classes, seed, refits)


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


PROBES = (
    LinearProbe(
        "linear",
        "L2 logistic or ridge regression on all features",
        "21 convex fits and the choice of a penalty, 1 s of a CPU core for 1,000 cases of 512 "
        "features and two classes; not measured on a GPU, which it does not use.",
    ),
    LinearProbe(
        "linear_pca64",
        f"The same on {COMPONENTS} principal components fitted on train",
        "A decomposition and the fits of the linear probe, 1 s of a CPU core for 1,000 cases of "
        "512 features and two classes; not measured on a GPU, which it does not use.",
        components=COMPONENTS,
    ),
)
