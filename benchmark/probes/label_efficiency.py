"""Label efficiency: the linear probe on a share of the training patients.

The model, the scaling and the candidates of C are the linear probe's. C is chosen by
cross-validation inside the support even where the task has a val side: who has few labels has no
labelled val set either.
"""

from dataclasses import dataclass

import numpy as np

from ..splits import position
from ..types import Budget, Features, Kind, Predictions
from ._linear import fit
from ._training import INNER_FOLDS, standardised_sides

Folds = list[tuple[np.ndarray, np.ndarray]]
"""(train rows, held-out rows) of each."""


BUDGET = Budget("percent", (1, 2, 5, 10, 25, 50, 100), draws=10, area=True)


@dataclass(frozen=True)
class LabelEfficiencyProbe:
    """L2 logistic regression (classification) or ridge (regression) on part of the patients."""

    name: str = "label_efficiency"
    title: str = "The linear probe on 1 to 100 % of the training patients"
    version: int = 1
    kinds: tuple[Kind, ...] = ("classification", "regression")
    budget: Budget = BUDGET
    cost: str = (
        "61 choices of a penalty and fits, of each share for 10 draws of patients, 4 s of a CPU "
        "core for 1,000 cases of 512 features and two classes; not measured on a GPU, which it "
        "does not use."
    )

    def __call__(self, features: Features, seed: int, refits: int) -> Predictions:
        """Fit on all train rows, the support; see ``types.Probe``. Val rows are not read."""
        from threadpoolctl import threadpool_limits

        # one BLAS thread: two are slower at these sizes, and round sums in another order
        with threadpool_limits(1):
            sides = standardised_sides(features, val=False)
            label = sides.train_target if features.kind == "classification" else None
            folds = support_folds(sides.train_patient, label, seed)
            return fit(sides, features.n_classes, seed, refits, folds)


def support_folds(patient: np.ndarray, label: np.ndarray | None, seed: int) -> Folds:
    """Patient-grouped folds that make sense for four patients as well as for a thousand.

    ``INNER_FOLDS``, or as many as the largest class has patients: two patients per class give two
    folds of one patient per class each. (Leaving single patients out instead would always train
    on fewer of the class that is asked for.) The patients of each class are dealt in a hashed
    order, one fold after the other, so that a class with two patients is in every training part.
    Folds whose training part lacks a class, which a class of a single patient makes, are left out
    unless there are no others: a model that cannot answer right says nothing about C.

    Args:
        patient: (n,) of each row.
        label: (n,) class of each row; None for regression.
        seed: of the order.

    Returns:
        The folds; none for a single patient, and then the strongest penalty is taken.
    """
    names, index = np.unique(patient, return_inverse=True)
    group = np.zeros(len(names), int)
    if label is not None:
        classes, label = np.unique(label, return_inverse=True)
        member = np.zeros((len(names), len(classes)), bool)
        member[index, label] = True
        # a patient with cases of several classes is dealt with the rarest of them
        group = np.where(member, member.sum(0), len(names) + 1).argmin(1)
    n_folds = min(INNER_FOLDS, int(np.bincount(group).max()))
    order = sorted(
        range(len(names)),
        key=lambda i: (group[i], position("support fold", seed, str(names[i]))),
    )
    fold = np.empty(len(names), int)
    fold[order] = np.arange(len(names)) % n_folds
    held_out = [fold[index] == k for k in range(n_folds)]
    folds = [(np.flatnonzero(~out), np.flatnonzero(out)) for out in held_out if not out.all()]
    if label is None:
        return folds
    everything = len(np.unique(label))
    complete = [(train, out) for train, out in folds if len(np.unique(label[train])) == everything]
    return complete or folds


PROBES = (LabelEfficiencyProbe(),)
