"""From bootstrap draws to an interval or a p-value; which draws, is the matter of ``statistics``."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from .metrics import Metric
from .resampling import Sample, degrees_of_freedom

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
    factor: float | None = None
    """Inflation of SE under cross-validation; None: one test set."""

    @property
    def widen(self) -> float:
        """What SE is multiplied by besides."""
        variance = float(self.values.var())
        # the mean of S drawn seeds varies less than S seeds do, by the share 1 / S
        missing = self.seed_variance / self.seeds / variance if variance > 0 else 0.0
        return math.sqrt(1 + missing) * (self.factor or 1.0)

    @property
    def quantile(self) -> float:
        """Of Student's t, two-sided."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.freedom))

    @property
    def freedom(self) -> float:
        """Degrees of freedom of SE."""
        return degrees_of_freedom(
            self.values, self.counts, self.who.stratum, (self.seed_variance, self.seeds - 1)
        )

    @property
    def bound(self) -> float:
        """Patients' worth of the test set where all draws are equal: see ``_wilson``."""
        return min(self.who.effective, 2 * max(1, self.who.smallest)) / self.widen**2


def interval(metric: Metric, score: float, evidence: Evidence, flags: tuple[str, ...]) -> Interval:
    """The 95 % interval around a score."""
    nothing = Interval(score, math.nan, math.nan, flags)
    if not math.isfinite(score):
        return replace(nothing, flags=(*flags, "undefined"))
    e = _defined(evidence)
    if e is None:
        return replace(nothing, flags=(*flags, "unstable"))
    spread = float(e.values.std(ddof=1))
    if abs(float(e.values.mean()) - score) > BIAS * spread + 1e-12:
        flags = (*flags, "biased")
    if e.who.n_patients < 2 or spread <= 1e-12 * max(1.0, abs(score)) or score == _perfect(metric):
        flags = (*flags, "degenerate")
        if e.who.n_patients < 2 or (metric.low, metric.high) != (0, 1):
            return Interval(score, math.nan, math.nan, flags)
        low, high = _wilson(score, e.bound, e.quantile)
    elif metric.scale != "proportion":
        low, high = _transformed(metric, score, e)
    elif e.factor is None:
        size = score * (1 - score) / (spread * e.widen) ** 2
        low, high = _wilson(score, min(size, e.who.effective), e.quantile)
    else:
        half = e.quantile * spread * e.widen / (score * (1 - score))
        low, high = (float(expit(logit(score) + side * half)) for side in (-1, 1))
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
    se = float(e.values.std(ddof=1)) * e.widen * _finite_sample(e.who)
    if e.who.n_patients < 2 or se <= 1e-12 * max(1.0, *map(abs, scores)):
        flags = (*flags, "degenerate")
        if e.who.n_patients < 2 or (metric.low, metric.high) != (0, 1):
            return replace(nothing, p=1.0 if delta == 0 else math.nan, flags=flags)
        return _degenerate_difference(scores, e, flags)
    half = e.quantile * se
    p = 2 * float(stats.t.sf(abs(delta) / se, e.freedom))
    return Difference(delta, *_within(metric, delta - half, delta + half), p, flags)


def _defined(evidence: Evidence) -> Evidence | None:
    """Without the draws that lack what the metric needs; None if they are too many."""
    defined = np.isfinite(evidence.values)
    if defined.mean() < DEFINED:
        return None
    return replace(evidence, values=evidence.values[defined], counts=evidence.counts[defined])


def _perfect(metric: Metric) -> float:
    return metric.high if metric.higher_is_better else metric.low


def _finite_sample(who: Sample) -> float:
    return math.sqrt(who.n_patients / (who.n_patients - 1))


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
    """estimate +- t SE on the metric's scale, brought back."""

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
    moved = moved[np.isfinite(moved)]
    if len(moved) < DEFINED * len(e.values):
        return math.nan, math.nan
    half = e.quantile * float(moved.std(ddof=1)) * e.widen * _finite_sample(e.who)
    middle = float(there(np.asarray(score)))
    ends = back(middle - half), back(middle + half)
    return min(ends), max(ends)


def _degenerate_difference(
    scores: tuple[float, float], e: Evidence, flags: tuple[str, ...]
) -> Difference:
    """Two scores of which no draw differs: bounds from the two intervals.

    Zou & Donner, Statistics in Medicine 27 (2008) 1693, equation 2, as if independent, which is
    wide for models that are alike.
    """
    (a, b), delta = scores, scores[0] - scores[1]
    (low_a, high_a), (low_b, high_b) = (_wilson(s, e.bound, e.quantile) for s in scores)
    below = math.hypot(a - low_a, high_b - b)
    above = math.hypot(high_a - a, b - low_b)
    towards_zero = below if delta > 0 else above
    p = 2 * float(stats.t.sf(abs(delta) / towards_zero * e.quantile, e.freedom))
    return Difference(delta, max(delta - below, -1.0), min(delta + above, 1.0), p, flags)


def _within(metric: Metric, low: float, high: float) -> tuple[float, float]:
    """A difference cannot leave the width of the metric's range."""
    width = metric.high - metric.low
    return max(low, -width), min(high, width)
