"""How far predicted probabilities can be taken at their word. Lower is better."""

import numpy as np

from . import Metric
from .classification import shares

BINS = 15
"""Equal-width bins of confidence, as in Guo et al., ICML 2017 (arXiv 1706.04599), section 4.1."""


def _brier(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Half the squared distance between probabilities and outcome, so that [0, 1] holds for any K.

    Brier, Monthly Weather Review 78 (1950) 1, sums over the classes: for two classes that counts
    the same error twice. scikit-learn's ``scale_by_half=True``.
    """
    outcome = np.eye(prediction.shape[1])[target]
    loss = ((prediction - outcome) ** 2).sum(1) / 2
    return weights @ loss / weights.sum(1)


def _ece(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Mean gap between confidence in the most likely class and how often it is right.

    Guo et al. 2017, equation 3: bins (m-1)/15 < confidence <= m/15. With few cases per bin the
    estimate is too high, also for a calibrated model (Roelofs et al., AISTATS 2022).
    """
    confidence = prediction.max(1)
    gap = (prediction.argmax(1) == target) - confidence
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    bins = np.searchsorted(inner, confidence, "left")
    per_bin = weights @ (np.eye(BINS)[bins] * gap[:, None])  # (B, BINS)
    return np.abs(per_bin).sum(1) / weights.sum(1)


METRICS = (
    Metric(
        "brier",
        "Brier score",
        "classification",
        higher_is_better=False,
        low=0.0,
        high=1.0,
        scale="log",
        chance=lambda target: float(1 - (shares(target) ** 2).sum()) / 2,
        compute=_brier,
    ),
    Metric(
        "ece",
        "Expected calibration error",
        "classification",
        higher_is_better=False,
        low=0.0,
        high=1.0,
        scale="log",
        # whoever always predicts the class shares is perfectly calibrated and perfectly useless
        chance=lambda target: 0.0,
        compute=_ece,
    ),
)
