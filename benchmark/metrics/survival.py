"""Whether those at higher risk have the event earlier, and how far survival curves are off.

Both compare or weight patients whose observation ended before the event (censored) only by what
is known of them. Tests compare with numbers of scikit-survival.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ProbeError
from . import Metric, Read

if TYPE_CHECKING:
    import pandas as pd

ROWS = 512
"""Patients compared with all others at once: memory grows with N, not with its square."""


def _columns(rows: pd.DataFrame, stem: str) -> np.ndarray:
    """(N, H) of ``stem_1``, ``stem_2``, ..."""
    n = sum(str(name).startswith(f"{stem}_") for name in rows.columns)
    return rows[[f"{stem}_{k}" for k in range(1, n + 1)]].to_numpy(np.float64)


def _read_risk(rows: pd.DataFrame) -> Read:
    """Target (N, 2): years, event. Prediction (N,): risk."""
    return Read(rows[["years", "event"]].to_numpy(np.float64), rows["risk"].to_numpy(np.float64))


def _read_curves(rows: pd.DataFrame) -> Read:
    """Target (N, 2 + H): years, event, and the horizons asked about. Prediction (N, H)."""
    observed = rows[["years", "event"]].to_numpy(np.float64)
    target = np.concatenate([observed, _columns(rows, "horizon")], axis=1)
    return Read(target, _columns(rows, "alive"))


def _concordance(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Harrell's C (JAMA 247 (1982) 2543): share of usable pairs that are ordered rightly.

    A pair is usable if it is known who had the event first: the one with the shorter time had it.
    At equal times whoever had it was before whoever was only observed until then; two events at
    one time are not compared. Equal risks count half. Only patients of one fold are compared,
    that is of one model.
    """
    years, event = target[:, 0], target[:, 1] > 0
    right, usable = np.zeros(len(weights)), np.zeros(len(weights))
    first = np.flatnonzero(event)
    for start in range(0, len(first), ROWS):
        i = first[start : start + ROWS]
        later = (years > years[i, None]) | ((years == years[i, None]) & ~event)
        later &= fold == fold[i, None]  # (I, N)
        sign = np.sign(prediction[i, None] - prediction)
        mine = weights[:, i]
        usable += (mine * (weights @ later.T)).sum(1)
        right += (mine * (weights @ (later * (1 + sign) / 2).T)).sum(1)
    score = np.full(len(weights), np.nan)
    np.divide(right, usable, out=score, where=usable > 0)
    return score


def _integrated_brier(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Mean over time of the squared error of survival curves, trapezoids between the horizons.

    Graf et al., Statistics in Medicine 18 (1999) 2529, section 4: whoever was censored before a
    horizon is not scored there, and the others count as many times more as such a patient was
    likely to be still observed. That likelihood is the Kaplan-Meier estimate of all test patients
    (no training patient is known here), made anew in every draw; just before the event for those
    who had it (Gerds & Schumacher, Biometrical Journal 48 (2006) 1029, equation 8).
    """
    years, event, horizons = target[:, 0], target[:, 1] > 0, target[:, 2:]
    if (horizons != horizons[0]).any():
        raise ProbeError(
            "Survival curves are given at other horizons for some cases than for others. Expected "
            "the same horizon_1, horizon_2, ... in all rows: give every case the same."
        )
    total = weights.sum(1)
    times, until, just_before = _observed(years, event, weights)
    place = np.searchsorted(times, years)
    scores = []
    for h, horizon in enumerate(horizons[0]):
        dead, alive = event & (years <= horizon), years > horizon
        loss = np.where(dead, prediction[:, h] ** 2, (1 - prediction[:, h]) ** 2)
        at = np.searchsorted(times, horizon, "right") - 1
        still = until[:, at] if at >= 0 else np.ones(len(weights))
        scores.append(
            _over(weights[:, dead] * loss[dead], just_before[:, place[dead]]).sum(1)
            + _over((weights[:, alive] * loss[alive]).sum(1), still)
        )
    values = np.stack(scores, axis=1) / total[:, None]  # (B, H)
    gaps = np.diff(horizons[0])
    if not gaps.sum() > 0:
        return values.mean(1)
    return (values[:, 1:] + values[:, :-1]) / 2 @ (gaps / gaps.sum())


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient; 0 where the numerator is, which is wherever the denominator can be."""
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=numerator > 0)


def _observed(
    years: np.ndarray, event: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kaplan-Meier estimate of being still observed; at one time, events come before censoring.

    Returns:
        (U,) times, (B, U) the estimate at each, and (B, U) just before each.
    """
    times, place = np.unique(years, return_inverse=True)
    at = np.eye(len(times))[place]  # (N, U)
    ended = weights @ (at * ~event[:, None])
    died = weights @ (at * event[:, None])
    at_risk = np.cumsum((ended + died)[:, ::-1], axis=1)[:, ::-1] - died
    until = np.cumprod(1 - _over(ended, at_risk), axis=1)
    return times, until, np.concatenate([np.ones((len(weights), 1)), until[:, :-1]], axis=1)


def kaplan_meier(target: np.ndarray, horizons: np.ndarray) -> np.ndarray:
    """Share of all patients who are free of the event at each horizon.

    Args:
        target: (N, 2) or wider: years, event.
        horizons: (H,) years.
    """
    years, event = target[:, 0], target[:, 1] > 0
    alive = np.ones(len(horizons))
    for t in np.unique(years[event]):
        at_risk, died = (years >= t).sum(), (event & (years == t)).sum()
        alive *= np.where(t <= horizons, 1 - died / at_risk, 1.0)
    return alive


def _without_covariates(target: np.ndarray) -> float:
    """What the Kaplan-Meier curve of the test patients themselves scores."""
    curve = np.tile(kaplan_meier(target, target[0, 2:]), (len(target), 1))
    once = np.ones((1, len(target)))
    return float(_integrated_brier(target, curve, once, np.zeros(len(target)))[0])


METRICS = (
    Metric(
        "concordance",
        "Concordance index",
        "survival",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=lambda target: 0.5,
        compute=_concordance,
        read=_read_risk,
    ),
    Metric(
        "integrated_brier",
        "Integrated Brier score",
        "survival",
        higher_is_better=False,
        low=0.0,
        high=1.0,
        scale="log",
        chance=_without_covariates,
        compute=_integrated_brier,
        read=_read_curves,
    ),
)
