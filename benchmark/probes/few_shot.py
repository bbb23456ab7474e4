"""Few-shot: how much a handful of patients per class tells a linear classifier.

With so few cases nothing can be chosen, so nothing is: one published penalty, one published
scaling, and no statistic of any case outside the support.
"""

from dataclasses import dataclass

import numpy as np

from ..types import Budget, Features, Kind, Predictions
from ._logistic import logistic_path
from ._training import directions, resampled_patients, sides_of

PENALTY = 1.0
"""C, which multiplies the log-loss summed over the support, as in scikit-learn: with more shots
the penalty counts for less. Value, L2-normalised features and the multinomial model: Tian et al.,
Rethinking few-shot image classification: a good embedding is all you need?, ECCV 2020, by their
code (WangYueFt/rfs at 9337f9b, eval/meta_eval.py), which leaves C at scikit-learn's default."""

BUDGET = Budget("patients per class", (1, 5, 10, 20), draws=10)


@dataclass(frozen=True)
class FewShotProbe:
    """L2-regularised logistic regression on L2-normalised features, centred on the support.

    The intercept is not penalised, as in scikit-learn's default solver. It therefore takes up any
    shift: the centring keeps digits, and no prediction depends on it. Rows of zeros have no
    direction and stay zero when they are normalised. Rows of unit length make cautious
    probabilities at C = 1, mostly near the prior: what counts here is their order.
    """

    name: str = "few_shot"
    title: str = "L2 logistic regression, C = 1, on 1 to 20 patients per class"
    version: int = 1
    kinds: tuple[Kind, ...] = ("classification",)
    budget: Budget = BUDGET
    cost: str = (
        "40 small convex fits for two classes, 0.3 s of a CPU core for 1,000 cases of 512 "
        "features; not measured on a GPU, which it does not use."
    )

    def __call__(self, features: Features, seed: int, refits: int) -> Predictions:
        """Fit on all train rows, the support; see ``types.Probe``. Val rows are not read."""
        from threadpoolctl import threadpool_limits

        sides = sides_of(features, val=False)
        target = sides.train_target
        # one BLAS thread: two are slower at these sizes, and round sums in another order
        with threadpool_limits(1):
            x, test = directions(sides.train), directions(sides.test)
            center = x.mean(0)
            x, test = x - center, test - center
            (values,) = logistic_path(x, target, [PENALTY], test, features.n_classes)
            draws = resampled_patients(sides.train_patient, seed, refits)
            again = [
                logistic_path(x, target, [PENALTY], test, features.n_classes, weight)[0]
                for weight in draws
            ]
        return Predictions(values, np.reshape(again, (refits, *values.shape)), {"C": PENALTY})


PROBES = (FewShotProbe(),)
