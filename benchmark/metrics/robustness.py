"""How much of what a model can do is left when the test images are shifted.

The score of a view is AUROC (classification), mean absolute error (regression) or Dice
(segmentation), whatever ranks the task, by those metrics themselves.

``kept`` is about the *gain over chance*: (shifted - chance) / (clean - chance), for errors with
both signs turned, each view's share held in [0, 1], then the mean over shifts and strengths. The
plain quotient flatters: an AUROC that falls from 0.9 to 0.5, a coin's, would have kept 56 %, and a
model at chance all of it. A model that is no better than chance on clean images has nothing to
keep: 0. Nor can a gain be shared out that might be luck: below ``SURE`` standard errors of a
score by luck, shares are of that many instead of the clean gain. So a model near chance scores
low though it loses nothing, all the more on few patients; one well above is not touched. Holding
each share at 1 makes a model that loses nothing score slightly below 1.

``kept_score`` is the plain quotient (errors: clean / shifted), for whom the words are to be taken
literally. Chance keeps 1 of it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..shifts import SHIFTS, VIEWS
from . import Metric, Read

if TYPE_CHECKING:
    import pandas as pd


SURE = 2.0
"""Standard errors: a gain that luck reaches once in 40 times."""


class _Scores(NamedTuple):
    """Of the clean images (B,) and of the shifted ones (V, B), and what is known of both."""

    clean: np.ndarray
    shifted: np.ndarray
    chance: np.ndarray
    """(B,) what a prediction that ignores the image scores on the same draw."""
    luck: np.ndarray
    """(B,) about the standard error of a score by luck."""
    higher_is_better: bool


def read(rows: pd.DataFrame, shift: str = "") -> Read:
    """What was answered to each view, the clean one first.

    Args:
        rows: of a robustness table, one per case.
        shift: only the views of this kind; empty: all.

    Returns:
        The targets (N,), or (N, 0) for a segmentation, whose scores are in the table; and
        (N, 1 + V, K) probabilities, (N, 1 + V) values, or (N, 1 + V, K - 1) Dice of each class.
    """
    names = ["clean", *(v.name for v in VIEWS if shift in ("", v.shift.name))]
    if "clean_value" in rows.columns:
        values = rows[[f"{name}_value" for name in names]].to_numpy(np.float64)
        return Read(rows["target"].to_numpy(np.float64), values)
    segmentation = "clean_dice_1" in rows.columns
    start, of = (1, "dice_") if segmentation else (0, "p")
    n = start
    while f"clean_{of}{n}" in rows.columns:
        n += 1
    stack = [
        rows[[f"{name}_{of}{k}" for k in range(start, n)]].to_numpy(np.float64) for name in names
    ]
    target = np.empty((len(rows), 0)) if segmentation else rows["target"].to_numpy(np.int64)
    return Read(target, np.stack(stack, axis=1))


def _scores(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> _Scores:
    from . import get

    luck = np.zeros(len(weights))
    if target.ndim == 2:
        metric, chance = get("dice"), np.zeros(len(weights))
    elif prediction.ndim == 3:
        metric, chance = get("auroc"), np.full(len(weights), 0.5)
        luck = _auroc_by_luck(target, prediction.shape[2], weights)
    else:
        metric = get("mae")
        off = np.abs(target - np.median(target))
        n = weights.sum(1)
        chance = weights @ off / n
        luck = np.sqrt(np.maximum(weights @ off**2 / n - chance**2, 0) / n)
    scores = [
        metric.compute(target, np.ascontiguousarray(prediction[:, view]), weights, fold)
        for view in range(prediction.shape[1])
    ]
    return _Scores(scores[0], np.stack(scores[1:]), chance, luck, metric.higher_is_better)


def _auroc_by_luck(target: np.ndarray, n_classes: int, weights: np.ndarray) -> np.ndarray:
    """(B,) SD of the AUROC of a random order: Mann & Whitney, 1947; the mean over classes."""
    classes = [1] if n_classes == 2 else [k for k in range(n_classes) if (target == k).any()]
    found = []
    for k in classes:
        a, b = weights @ (target == k), weights @ (target != k)
        found.append(np.sqrt((a + b + 1) / (12 * np.maximum(a * b, 1))))
    return np.mean(found, axis=0)


def _kept(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(B,) mean over views of the share of the gain over chance."""
    found = _scores(target, prediction, weights, fold)
    sign = 1 if found.higher_is_better else -1
    clean, shifted = sign * (found.clean - found.chance), sign * (found.shifted - found.chance)
    whole = np.maximum(clean, SURE * found.luck)
    share = np.zeros(shifted.shape)
    np.divide(np.minimum(shifted, clean), whole, out=share, where=(clean > 0) & (whole > 0))
    mean = np.maximum(share, 0).mean(0)
    defined = np.isfinite(clean) & np.isfinite(shifted).all(0)
    return np.where(defined, mean, np.nan)


def _kept_score(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(B,) mean over views of the score's quotient; NaN where it has none."""
    found = _scores(target, prediction, weights, fold)
    above, below = found.shifted, np.broadcast_to(found.clean, found.shifted.shape)
    if not found.higher_is_better:
        above, below = below, above
    share = np.full(above.shape, np.nan)
    np.divide(above, below, out=share, where=below > 0)
    return share.mean(0)


def _gain(name: str, title: str, shift: str = "") -> Metric:
    return Metric(
        name,
        title,
        "robustness",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=lambda target: 0.0,
        compute=_kept,
        read=partial(read, shift=shift),
    )


METRICS = (
    _gain("kept", "Gain over chance kept"),
    *(_gain(f"kept_{s.name}", f"Gain kept: {s.title.lower()}", s.name) for s in SHIFTS),
    Metric(
        "kept_score",
        "Score kept",
        "robustness",
        higher_is_better=True,
        low=0.0,
        high=np.inf,
        scale="log",
        chance=lambda target: 1.0,
        compute=_kept_score,
        read=read,
    ),
)
