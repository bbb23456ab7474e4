"""One pass over sorted cases per bootstrap draw, compiled: 20 times faster than numpy's cumsum.

Imported on first use, because numba takes half a second to import.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def ordered_pairs(
    weights: np.ndarray,
    order: np.ndarray,
    new_score: np.ndarray,
    new_fold: np.ndarray,
    positive: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a positive and a negative of one fold: how many are ordered rightly, of how many.

    Args:
        weights: (B, N) multiplicities.
        order: (N,) cases by fold, then by rising score.
        new_score: (N,) in that order: the score differs from the one before, or the fold does.
        new_fold: (N,) in that order: the fold differs from the one before.
        positive: (N,) in that order.

    Returns:
        (B,) right pairs, a tie counting half, and (B,) pairs.
    """
    draws, n = weights.shape
    right = np.zeros(draws)
    pairs = np.zeros(draws)
    for b in range(draws):
        below = 0.0  # negatives of this fold with a lower score
        tied = 0.0  # negatives of this fold with this score
        tied_positives = 0.0
        fold_positives = 0.0
        for i in range(n):
            if new_score[i]:
                right[b] += tied_positives * (below + tied / 2)
                below += tied
                tied = 0.0
                tied_positives = 0.0
            if new_fold[i]:
                pairs[b] += fold_positives * below
                below = 0.0
                fold_positives = 0.0
            w = weights[b, order[i]]
            if positive[i]:
                tied_positives += w
                fold_positives += w
            else:
                tied += w
        right[b] += tied_positives * (below + tied / 2)
        pairs[b] += fold_positives * (below + tied)
    return right, pairs


@numba.njit(cache=True, nogil=True)
def summed_precision(
    weights: np.ndarray, order: np.ndarray, new_score: np.ndarray, positive: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum over positives of the precision at their score.

    Args:
        weights: (B, N) multiplicities.
        order: (N,) cases by falling score.
        new_score: (N,) in that order: the score differs from the one before.
        positive: (N,) in that order.

    Returns:
        (B,) sum of precisions, (B,) positives, (B,) negatives.
    """
    draws, n = weights.shape
    total = np.zeros(draws)
    positives = np.zeros(draws)
    negatives = np.zeros(draws)
    for b in range(draws):
        hits = 0.0
        misses = 0.0
        tied_hits = 0.0
        for i in range(n):
            if new_score[i] and tied_hits > 0:
                # a threshold that accepts one case accepts all that tie with it
                total[b] += tied_hits * hits / (hits + misses)
                tied_hits = 0.0
            w = weights[b, order[i]]
            if positive[i]:
                hits += w
                tied_hits += w
            else:
                misses += w
        if tied_hits > 0:
            total[b] += tied_hits * hits / (hits + misses)
        positives[b] = hits
        negatives[b] = misses
    return total, positives, negatives
