"""How well classes are told apart. Multi-class scores are unweighted means over classes.

A class without cases in a (re)sample, or without cases of any other class, has no score of its
own and is left out of the mean; a sample of a single class has none at all: NaN. scikit-learn
raises, or warns and counts 0 or 1, in these cases.
"""

import numpy as np

from . import Metric


def _macro(scores: list[np.ndarray]) -> np.ndarray:
    """Mean over classes (C of (B,)) that are defined; NaN where none is."""
    stacked = np.stack(scores)
    defined = np.isfinite(stacked)
    count = defined.sum(0)
    total = np.where(defined, stacked, 0.0).sum(0)
    return _ratio(total, count)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0; without a warning."""
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _one_vs_rest(target: np.ndarray, prediction: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(positive (N,), score (N,)) of each class; of class 1 alone where there are two."""
    n_classes = prediction.shape[1]
    classes = [1] if n_classes == 2 else range(n_classes)
    return [(target == k, prediction[:, k]) for k in classes]


def _auroc(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Share of (positive, negative) pairs that are ordered rightly: Mann & Whitney, 1947."""
    from ._sweeps import ordered_pairs

    scores = []
    for positive, score in _one_vs_rest(target, prediction):
        order = np.lexsort((score, fold))
        new_fold = _changes(fold[order])
        new_score = _changes(score[order]) | new_fold
        scores.append(_ratio(*ordered_pairs(weights, order, new_score, new_fold, positive[order])))
    return _macro(scores)


def _average_precision(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Mean over positives of the precision at their score (no interpolation)."""
    from ._sweeps import summed_precision

    scores = []
    for positive, score in _one_vs_rest(target, prediction):
        order = np.argsort(-score, kind="stable")
        total, positives, negatives = summed_precision(
            weights, order, _changes(score[order]), positive[order]
        )
        # without negatives any order would be perfect
        scores.append(np.where(negatives > 0, _ratio(total, positives), np.nan))
    return _macro(scores)


def _changes(values: np.ndarray) -> np.ndarray:
    """(N,) whether a value differs from the one before it."""
    changed = np.zeros(len(values), np.bool_)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _balanced_accuracy(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    right = (prediction.argmax(1) == target).astype(np.float64)
    members = np.eye(prediction.shape[1])[target]  # (N, K)
    size = weights @ members
    recall = _ratio((weights * right) @ members, size)
    mean = _macro(list(recall.T))
    mean[(size > 0).sum(1) < 2] = np.nan
    return mean


def shares(target: np.ndarray) -> np.ndarray:
    """Share of each class that occurs among the targets."""
    counts = np.bincount(np.asarray(target, np.int64))
    return counts[counts > 0] / counts.sum()


def _prevalence(target: np.ndarray) -> float:
    """Average precision of a random order: the class's share (macro: the mean share)."""
    if np.max(target) <= 1:
        return float(np.mean(np.asarray(target) == 1))
    return float(shares(target).mean())


METRICS = (
    Metric(
        "auroc",
        "AUROC",
        "classification",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=lambda target: 0.5,
        compute=_auroc,
        pairs=True,
    ),
    Metric(
        "average_precision",
        "Average precision",
        "classification",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=_prevalence,
        compute=_average_precision,
    ),
    Metric(
        "balanced_accuracy",
        "Balanced accuracy",
        "classification",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=lambda target: 1 / len(shares(target)),
        compute=_balanced_accuracy,
    ),
)
