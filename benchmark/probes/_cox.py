"""Cox's proportional hazards with a ridge penalty, exact and fast: all penalties of one set.

The objective is C times the negative log partial likelihood plus half the squared norm of the
weights, as for the other linear probes. Events at the same time are handled as Breslow does
(Biometrics 30 (1974) 89), whose baseline hazard goes with it; a row that counts twice is then the
same as two equal rows. Everything is float64.

An L2 penalty keeps the weights in the span of the training rows, so rows are rotated into their
principal axes first: with n rows and F > n features there are n unknowns.

Our own, because scikit-survival (GPL-3.0) cannot be shipped with this licence, lifelines 0.30
excludes the pandas that we use, and statsmodels has no ridge. Tests compare with numbers of
scikit-survival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import linalg

from ..newton import MOST_STEPS, enough_at, share_of_step


@dataclass(frozen=True)
class Cohort:
    """Who was followed up, sorted by falling time: whoever is at risk at a time comes first."""

    order: np.ndarray
    """(n,) rows of the cohort as it was given; without those that do not count."""
    years: np.ndarray
    """(n,) falling."""
    weight: np.ndarray
    """(n,) how often each counts."""
    events: np.ndarray
    """(E,) places with an event that counts."""
    last: np.ndarray
    """(E,) of each event, the last place that is still at risk: ties are."""

    @classmethod
    def of(cls, followup: np.ndarray, weight: np.ndarray | None = None) -> Cohort:
        """Sort a cohort.

        Args:
            followup: (n, 2) years and event (0 or 1).
            weight: (n,) how often each row counts; None: once.
        """
        weight = np.ones(len(followup)) if weight is None else np.asarray(weight, np.float64)
        order = np.argsort(-followup[:, 0], kind="stable")
        order = order[weight[order] > 0]
        years, weight = followup[order, 0], weight[order]
        events = np.flatnonzero(followup[order, 1] > 0)
        last = np.searchsorted(-years, -years[events], "right") - 1
        return cls(order, years, weight, events, last)


class _Risk(NamedTuple):
    """Hazards relative to the largest."""

    each: np.ndarray
    """(n,) weight times hazard ratio."""
    at_risk: np.ndarray
    """(E,) their sum over whoever is at risk at each event."""
    shift: float
    """Logarithm of the hazard ratio that is 1 here."""


def _risk(cohort: Cohort, eta: np.ndarray) -> _Risk:
    shift = float(eta.max())
    each = cohort.weight * np.exp(eta - shift)
    # too long a step may leave a risk set without a hazard: it then looks worse than it is
    at_risk = np.maximum(np.cumsum(each)[cohort.last], np.finfo(float).tiny)
    return _Risk(each, at_risk, shift)


def log_likelihood(followup: np.ndarray, eta: np.ndarray) -> float:
    """Log partial likelihood of log hazard ratios (n,), for ``followup`` (n, 2)."""
    return _log_likelihood(cohort := Cohort.of(followup), eta[cohort.order])


def _log_likelihood(cohort: Cohort, eta: np.ndarray) -> float:
    risk = _risk(cohort, eta)
    own = eta[cohort.events] - risk.shift - np.log(risk.at_risk)
    return float(cohort.weight[cohort.events] @ own)


def cox_path(
    z: np.ndarray, cohort: Cohort, penalties: Sequence[float] | np.ndarray
) -> Iterator[np.ndarray]:
    """Newton's method at every penalty.

    Args:
        z: (n, R) training rows in the cohort's order.
        cohort: their follow-up; with at least one event.
        penalties: values of C, rising: from the strongest penalty to the weakest.

    Yields:
        (R,) weights per penalty.
    """
    reach = float(np.einsum("ij,ij->i", z, z).max(initial=0.0))
    w = np.zeros(z.shape[1])
    eta = np.zeros(len(z))
    mass = cohort.weight[cohort.events]
    for c in penalties:
        for _ in range(MOST_STEPS):
            risk = _risk(cohort, eta)
            steps = np.bincount(cohort.last, mass / risk.at_risk, len(z))
            # the baseline hazard that each row has lived through: that of all later places
            hazard = np.cumsum(steps[::-1])[::-1]
            expected = risk.each * hazard
            gradient = c * (expected @ z - mass @ z[cohort.events]) + w
            # (E, R) mean of who is at risk at each event
            mean = np.cumsum(risk.each[:, None] * z, axis=0)[cohort.last] / risk.at_risk[:, None]
            hessian = c * ((z.T * expected) @ z - (mean.T * mass) @ mean)
            hessian.flat[:: len(w) + 1] += 1.0
            step_w = -linalg.solve(hessian, gradient, assume_a="pos", check_finite=False)
            step = z @ step_w
            decrement = -float(gradient @ step_w)
            furthest = float(np.ptp(step))
            length = share_of_step(furthest, _change(cohort, c, w, eta, step_w, step), decrement)
            w, eta = w + length * step_w, eta + length * step
            if decrement * min(1.0, furthest**2) < enough_at(c, reach):
                break
        yield w


def _change(
    cohort: Cohort, c: float, w: np.ndarray, eta: np.ndarray, step_w: np.ndarray, step: np.ndarray
) -> Callable[[float], float]:
    """The objective after a share of a step, less the objective before."""
    before = _log_likelihood(cohort, eta)

    def change(t: float) -> float:
        gained = _log_likelihood(cohort, eta + t * step) - before
        return t * float(w @ step_w) + t * t / 2 * float(step_w @ step_w) - c * gained

    return change


def baseline(cohort: Cohort, eta: np.ndarray, horizons: np.ndarray) -> np.ndarray:
    """Logarithm of Breslow's cumulative baseline hazard at each horizon; -inf before any event.

    Args:
        cohort: the training patients.
        eta: (n,) their log hazard ratios, in the cohort's order.
        horizons: (H,) years.
    """
    risk = _risk(cohort, eta)
    share = cohort.weight[cohort.events] / risk.at_risk
    until = (cohort.years[cohort.events] <= horizons[:, None]) @ share
    with np.errstate(divide="ignore"):
        return np.log(until) - risk.shift


class Rotated(NamedTuple):
    """Training rows and rows to predict in the principal axes of the training rows."""

    train: np.ndarray
    """(n, R), R at most n."""
    out: np.ndarray
    """(m, R)."""


def rotated(x: np.ndarray, out: np.ndarray) -> Rotated:
    """Rotate training rows (n, F) and rows to predict (m, F), centred on the training rows.

    A shift of all rows changes no hazard ratio.
    """
    center = x.mean(0)
    x, out = x - center, out - center
    left, size, axes = linalg.svd(x, full_matrices=False, check_finite=False)
    return Rotated(left * size, out @ axes.T)
