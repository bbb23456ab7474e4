"""One pass over sorted candidates per bootstrap draw, compiled. Imported on first use."""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def found_at_rates(
    weights: np.ndarray,
    scans: np.ndarray,
    case: np.ndarray,
    right: np.ndarray,
    new_score: np.ndarray,
    rates: np.ndarray,
) -> np.ndarray:
    """How many lesions are found where so many false candidates per scan are let through.

    Args:
        weights: (B, N) multiplicities of the scans.
        scans: (B,) their sum over the scans that these candidates are of.
        case: (M,) scan of each candidate, by falling score.
        right: (M,) whether it hits a lesion.
        new_score: (M,) in that order: the score differs from the one before.
        rates: (R,) false candidates per scan, rising.

    Returns:
        (B, R). Between two scores of the curve it is interpolated linearly.
    """
    draws, m = len(weights), len(case)
    out = np.zeros((draws, len(rates)))
    for b in range(draws):
        r = 0
        false_before = found_before = 0.0  # at the last score that is wholly let through
        false = found = 0.0
        for i in range(m + 1):
            if i == m or new_score[i]:
                while r < len(rates) and false > rates[r] * scans[b] * (1 + 1e-12):
                    allowed = rates[r] * scans[b] - false_before
                    share = allowed / (false - false_before)
                    out[b, r] = found_before + share * (found - found_before)
                    r += 1
                if r == len(rates):
                    break
                false_before, found_before = false, found
            if i < m:
                w = weights[b, case[i]]
                if right[i]:
                    found += w
                else:
                    false += w
        for last in range(r, len(rates)):
            out[b, last] = found  # all candidates are let through
    return out
