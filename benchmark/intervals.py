"""From bootstrap draws to an interval or a p-value; ``statistics`` says which draws."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from .metrics import Metric
from .resampling import Sample, Spread, spread

LEVEL = 0.95

BIAS = 0.25
"""A bootstrap bias below this share of SE can be ignored (Efron & Tibshirani, An Introduction to
the Bootstrap (1993), section 10.3)."""

DEFINED = 0.9
"""Least share of draws in which the metric must be defined."""


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % interval; NaN where there is none."""

    score: float
    low: float
    high: float
    flags: tuple[str, ...] = ()
    """Reasons to be careful: keys of ``statistics.FLAGS``."""


@dataclass(frozen=True)
class Difference:
    """Score of the first model minus that of the second, on the same patients."""

    delta: float
    low: float
    high: float
    """95 % interval, not adjusted for the number of comparisons."""
    p: float
    """Two-sided; to be adjusted with ``statistics.holm`` across all that is shown."""
    flags: tuple[str, ...] = ()

    @property
    def significant(self) -> bool | None:
        """Whether p < 0.05; None where the interval is not calibrated or p is not known."""
        if "uncalibrated" in self.flags or math.isnan(self.p):
            return None
        return self.p < 1 - LEVEL


@dataclass(frozen=True)
class Evidence:
    """The draws behind one score, or one difference of scores."""

    values: np.ndarray
    """(B,) of each draw."""
    counts: np.ndarray
    """(B, G) how often each patient was drawn."""
    who: Sample
    seeds: int = 1
    """Training seeds that were drawn along with the patients."""
    seed_variance: float = 0.0
    """Of the mean over seeds, unbiased."""
    factor: float = 1.0
    """By which SE is too small because the training patients vary as well: cross-validation."""
    logit: bool = False
    """Build the interval of a proportion on the logit scale, for which ``factor`` was made."""

    def spread(self, pairs: bool, moved: np.ndarray | None = None) -> Spread:
        """Of the score, or of the draws moved to another scale; inflated by ``factor``."""
        values = self.values if moved is None else moved
        raw = float(self.values.var())
        # a change of scale stretches all sources of variance alike
        stretch = float(values.var()) / raw if raw > 0 else 0.0
        seed_variance = self.seed_variance * stretch
        found = spread(values, self.counts, self.who, pairs, self.seeds, seed_variance)
        return Spread(found.variance * self.factor**2, found.freedom)

    @property
    def bound(self) -> float:
        """Patients' worth of the test set where all draws are equal: see ``_wilson``."""
        return min(self.who.effective, 2 * max(1, self.who.smallest)) / self.factor**2


def interval(metric: Metric, score: float, evidence: Evidence, flags: tuple[str, ...]) -> Interval:
    """The 95 % interval around a score."""
    nothing = Interval(score, math.nan, math.nan, flags)
    if not math.isfinite(score):
        return replace(nothing, flags=(*flags, "undefined"))
    e = _defined(evidence)
    if e is None:
        return replace(nothing, flags=(*flags, "unstable"))
    variance, freedom = e.spread(metric.pairs)
    q = quantile(freedom)
    if abs(float(e.values.mean()) - score) > BIAS * float(e.values.std()) + 1e-12:
        flags = (*flags, "biased")
    if _degenerate(e, score) or score in (metric.low, metric.high):  # an end has no logit
        flags = (*flags, "degenerate")
        if e.who.n_patients < 2 or (metric.low, metric.high) != (0, 1):
            return replace(nothing, flags=flags)
        low, high = _wilson(score, e.bound, q)
    elif metric.scale != "proportion":
        low, high = _transformed(metric, score, e)
    elif e.logit or metric.kind != "classification":
        # a mean of scores of cases varies less than one of hits and misses, which Wilson's is for
        half = q * math.sqrt(variance) / (score * (1 - score))
        low, high = (float(expit(logit(score) + side * half)) for side in (-1, 1))
    else:
        low, high = _wilson(score, min(score * (1 - score) / variance, e.who.effective), q)
    return Interval(score, max(low, metric.low), min(high, metric.high), flags)


def difference(
    metric: Metric, scores: tuple[float, float], evidence: Evidence, flags: tuple[str, ...]
) -> Difference:
    """Score minus score, with a t-interval on the plain scale, from draws of the difference."""
    delta = scores[0] - scores[1]
    nothing = Difference(delta, math.nan, math.nan, math.nan, flags)
    if not math.isfinite(delta):
        return replace(nothing, flags=(*flags, "undefined"))
    e = _defined(evidence)
    if e is None:
        return replace(nothing, flags=(*flags, "unstable"))
    variance, freedom = e.spread(metric.pairs)
    if _degenerate(e, max(map(abs, scores))):
        flags = (*flags, "degenerate")
        if e.who.n_patients < 2 or (metric.low, metric.high) != (0, 1):
            return replace(nothing, p=1.0 if delta == 0 else math.nan, flags=flags)
        below, above = _independent_margins(scores, e.bound, quantile(freedom))
        se = (below if delta > 0 else above) / quantile(freedom)
    else:
        se = math.sqrt(variance)
        below = above = quantile(freedom) * se
    p = 2 * float(stdtr(freedom, -abs(delta) / se))
    reach = metric.high - metric.low
    return Difference(delta, max(delta - below, -reach), min(delta + above, reach), p, flags)


def quantile(freedom: float) -> float:
    """Of Student's t, two-sided at ``LEVEL``."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _degenerate(e: Evidence, score: float) -> bool:
    """Whether the draws say nothing about the spread, up to rounding."""
    return e.who.n_patients < 2 or float(np.ptp(e.values)) <= 1e-12 * max(1.0, abs(score))


def _defined(evidence: Evidence) -> Evidence | None:
    """Without the draws that lack what the metric needs; None if they are too many."""
    defined = np.isfinite(evidence.values)
    if defined.all():
        return evidence
    if defined.mean() < DEFINED:
        return None
    return replace(evidence, values=evidence.values[defined], counts=evidence.counts[defined])


def _wilson(p: float, n: float, q: float) -> tuple[float, float]:
    """Wilson, JASA 22 (1927) 209, equation 2, for a share ``p`` of ``n``.

    For AUROC ``n`` is an effective number, p(1-p)/SE^2, at most that of a mean over classes. Where
    no draw differs there is no SE: n is then twice the smallest class, so that even for a score
    that is nothing but the mean of sensitivity and specificity a perfect one is no certainty.
    """
    middle = (p + q * q / (2 * n)) / (1 + q * q / n)
    half = q / (1 + q * q / n) * math.sqrt(p * (1 - p) / n + q * q / (4 * n * n))
    return middle - half, middle + half


def _transformed(metric: Metric, score: float, e: Evidence) -> tuple[float, float]:
    """Estimate +- t SE on the metric's scale, brought back."""

    def there(x: np.ndarray) -> np.ndarray:
        if metric.scale == "fisher_z":
            return np.arctanh(x)
        return np.log(x if metric.scale == "log" else 1 - x)

    def back(z: float) -> float:
        if metric.scale == "fisher_z":
            return math.tanh(z)
        return math.exp(z) if metric.scale == "log" else 1 - math.exp(z)

    with np.errstate(divide="ignore"):
        moved = there(e.values)
    usable = np.isfinite(moved)  # a draw may be perfect, whose logarithm is infinite
    if usable.mean() < DEFINED:
        return math.nan, math.nan
    e = replace(e, values=e.values[usable], counts=e.counts[usable])
    moved = moved[usable]
    variance, freedom = e.spread(metric.pairs, moved)
    half = quantile(freedom) * math.sqrt(variance)
    middle = float(there(np.asarray(score)))
    ends = back(middle - half), back(middle + half)
    return min(ends), max(ends)


def _independent_margins(scores: tuple[float, float], size: float, q: float) -> tuple[float, float]:
    """How far a difference may lie below and above, from the intervals of the two scores.

    Zou & Donner, Statistics in Medicine 27 (2008) 1693, equation 2, as if the scores were
    independent, which is wide for models that are alike.
    """
    (a, b), ((low_a, high_a), (low_b, high_b)) = scores, (_wilson(s, size, q) for s in scores)
    return math.hypot(a - low_a, high_b - b), math.hypot(high_a - a, b - low_b)
