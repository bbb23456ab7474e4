"""Scores against the number of training patients: curves, the area under them, and what they save.

Every size is trained on several draws of patients. A score is the mean over draws; its interval
crosses draws with test patients (see ``statistics``). Draws are nested and test patients shared,
so a curve moves as a whole: the area and the share of labels are computed anew for every draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .intervals import DEFINED, LEVEL, Difference, Interval, difference, interval
from .metrics import Metric
from .resampling import Sample
from .statistics import crossed, cv_factor, few, mean_of_drawn


@dataclass(frozen=True)
class Runs:
    """Scores of several trainings on the same test patients, and of draws of those patients."""

    once: np.ndarray
    """(S,) score of each training."""
    drawn: np.ndarray
    """(S, B) score of each training in each draw of patients."""


def runs(
    metric: Metric,
    target: np.ndarray,
    predictions: np.ndarray,
    fold: np.ndarray,
    counts: np.ndarray,
    who: Sample,
) -> Runs:
    """Score every training on the sample and on every draw of patients.

    Args:
        metric: which.
        target: (N,).
        predictions: (S, N, K) or (S, N) of S trainings.
        fold: (S, N) the fold that held each case out.
        counts: (B, G) of ``patient_draws``.
        who: the test patients.
    """
    pairs = list(zip(predictions, fold, strict=True))
    once = np.array([metric(target, p, fold=f) for p, f in pairs])
    return Runs(once, np.stack([metric(target, p, counts[:, who.member], f) for p, f in pairs]))


def area(curve: Mapping[int, Runs]) -> Runs:
    """Mean height of each training's curve over the logarithm of the size, by trapezoids.

    On the scale of the metric: a curve that is flat has the height of its points. Sizes count by
    the share of the axis they stand for. A size with one training counts in all.

    Args:
        curve: by size; at least one.
    """
    sizes = sorted(curve)
    x = np.log(sizes)
    reach = np.diff(x)
    share = np.ones(1)
    if len(sizes) > 1:
        share = np.convolve(reach, (0.5, 0.5)) / reach.sum()  # half of each neighbouring step
    once = sum(w * curve[size].once for w, size in zip(share, sizes, strict=True))
    drawn = sum(w * curve[size].drawn for w, size in zip(share, sizes, strict=True))
    return Runs(np.asarray(once), np.asarray(drawn))


def runs_interval(
    metric: Metric,
    found: Runs,
    n_classes: int,
    counts: np.ndarray,
    who: Sample,
    width: int | None = None,
    seed: int = 0,
) -> Interval:
    """Mean score over trainings, with its interval over patients and trainings.

    Args:
        metric: which.
        found: scores of the trainings.
        n_classes: K; of a regression anything.
        counts: the draws of patients.
        who: the test patients.
        width: F under cross-validation, where SE is multiplied by the factor of the linear probe
            on all patients. That factor was not simulated for fewer: the interval is flagged.
        seed: of the draws of trainings.
    """
    score = float(found.once.mean())
    evidence = crossed(found.drawn, found.once, counts, who, seed)
    if width is None:
        return interval(metric, score, evidence, few(metric, who))
    factor, flags = cv_factor("score", metric, n_classes, who, width, (score,))
    flags = tuple(dict.fromkeys((*flags, "uncalibrated")))
    return interval(metric, score, replace(evidence, factor=factor, logit=True), flags)


def runs_difference(
    metric: Metric,
    ours: Runs,
    theirs: Runs,
    n_classes: int,
    counts: np.ndarray,
    who: Sample,
    width: int | None = None,
    seed: int = 0,
) -> Difference:
    """Our mean score minus theirs, of the same draws of patients and trainings.

    Arguments as in :func:`runs_interval`; ``width`` is that of the wider features.
    """
    scores = (float(ours.once.mean()), float(theirs.once.mean()))
    drawn, once = ours.drawn - theirs.drawn, ours.once - theirs.once
    evidence = crossed(drawn, once, counts, who, seed)
    if width is None:
        return difference(metric, scores, evidence, few(metric, who))
    factor, flags = cv_factor("difference", metric, n_classes, who, width, scores)
    flags = tuple(dict.fromkeys((*flags, "uncalibrated")))
    return difference(metric, scores, replace(evidence, factor=factor), flags)


# --- labels saved ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelShare:
    """The percentage of the labels at which one model is as good as another with all of them."""

    share: float
    """Percent; infinite where not even all labels are enough."""
    low: float
    high: float
    """95 % interval."""
    smallest: int
    """The least percentage that was tried: a share that equals it may be less."""
    largest: int
    """The greatest; a curve that stays below is ``inf``."""
    flags: tuple[str, ...] = ()
    """Reasons to be careful: keys of ``statistics.FLAGS``."""


def label_share(
    metric: Metric,
    ours: Mapping[int, Runs],
    theirs: Runs,
    n_patients: int,
    factor: float = 1.0,
    seed: int = 0,
) -> LabelShare | None:
    """Where our curve reaches the height of their right end, between sizes by log-linear steps.

    The curve is made monotone by isotonic regression first, because a curve that wanders crosses
    a level too early. The interval holds the middle 95 % of the shares found in draws of patients
    and trainings that both models see alike.

    Args:
        metric: which.
        ours: our scores by percentage.
        theirs: their scores on all labels, of the same test patients and draws.
        n_patients: that were drawn from: draws vary less than patients, see ``statistics``.
        factor: by which draws vary too little in addition: cross-validation.
        seed: of the draws of trainings.

    Returns:
        None where the metric is not defined on one of the curves or in too many draws.
    """
    sizes = np.array(sorted(ours))
    sign = 1 if metric.higher_is_better else -1
    wider = factor * np.sqrt(n_patients / max(1, n_patients - 1))

    points = [*(ours[size] for size in sizes), theirs]
    scores = sign * np.array([[float(runs.once.mean())] for runs in points])  # (sizes + 1, 1)
    drawn = sign * np.stack([mean_of_drawn(runs.drawn, seed) for runs in points])
    usable = np.isfinite(drawn).all(0)
    if not np.isfinite(scores).all() or usable.mean() < DEFINED:
        return None
    drawn = drawn[:, usable]
    drawn = scores + wider * (drawn - drawn.mean(1, keepdims=True))  # spread as patients are
    heights, level = scores[:-1], scores[-1]
    share = float(_crossing(sizes, _monotone(heights), level)[0])
    shares = _crossing(sizes, _monotone(drawn[:-1]), drawn[-1])
    # no interpolation between ranks: some are infinite
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(shares, tails, method="closest_observation")
    return LabelShare(share, float(low), float(high), int(sizes[0]), int(sizes[-1]))


def _monotone(heights: np.ndarray) -> np.ndarray:
    """Isotonic regression of each column (sizes, B), rising.

    By its max-min formula (Robertson, Wright & Dykstra, Order Restricted Statistical Inference
    (1988), theorem 1.4.4): the largest over starts of the least over ends of the mean between.
    """
    n = len(heights)
    sums = np.concatenate([np.zeros_like(heights[:1]), heights.cumsum(0)])
    out = np.empty_like(heights)
    for i in range(n):
        best = np.full(heights.shape[1], -np.inf)
        for start in range(i + 1):
            lengths = np.arange(i + 1, n + 1)[:, None] - start
            least = ((sums[i + 1 :] - sums[start]) / lengths).min(0)
            best = np.maximum(best, least)
        out[i] = best
    return out


def _crossing(sizes: np.ndarray, heights: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Size at which each rising column (sizes, B) first reaches its level (B,)."""
    x = np.log(sizes)
    reached = heights >= level - 1e-12  # a curve that ends on the level has reached it
    first = reached.argmax(0)  # 0 also where none is reached
    columns = np.arange(heights.shape[1])
    before = np.maximum(first - 1, 0)
    below, above = heights[before, columns], heights[first, columns]
    with np.errstate(invalid="ignore", divide="ignore"):
        step = np.where(above > below, (level - below) / (above - below), 1.0)
    at = np.exp(x[before] + np.clip(step, 0, 1) * (x[first] - x[before]))
    at = np.where(first == 0, sizes[0], at)
    return np.where(reached.any(0), at, np.inf)
