"""Drawing patients with replacement, and what the spread of the draws says."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .types import Kind

LEAST = 0.25
"""The unbiased variance of nearly equal predictions can be 0 or less by chance: it is taken to be
at least this share of that of the draws (which is three times too large at worst, see ``spread``)."""


@dataclass(frozen=True)
class Sample:
    """Whose cases a test set holds; what is drawn are patients with all their cases."""

    member: np.ndarray
    """(N,) the patient of each case, as an index into the sorted patients."""
    stratum: np.ndarray
    """(G,) classes are drawn separately where all cases of every patient share one; else 0."""
    smallest: int
    """Patients in the smallest class, 0 if the test set lacks one; for values, all G."""
    effective: float
    """Patients' worth of a mean over classes: K^2 / sum(1 / patients of class k), that is twice
    the harmonic mean for two classes and G for balanced ones."""

    @property
    def n_patients(self) -> int:
        """G."""
        return len(self.stratum)


def sample(kind: Kind, target: np.ndarray, patient: np.ndarray, n_classes: int = 0) -> Sample:
    """Group cases by patient.

    Args:
        kind: of the task.
        target: (N,).
        patient: (N,) identifiers.
        n_classes: K, of a classification.
    """
    patients, member = np.unique(np.asarray(patient), return_inverse=True)
    stratum = np.zeros(len(patients), np.int64)
    if kind != "classification":
        return Sample(member, stratum, len(patients), float(len(patients)))
    has = np.zeros((len(patients), n_classes), bool)
    has[member, np.asarray(target, np.int64)] = True
    if (has.sum(1) == 1).all():
        stratum = has.argmax(1)
    per_class = has.sum(0)
    present = per_class[per_class > 0]
    effective = len(present) ** 2 / (1 / present).sum()
    return Sample(member, stratum, int(per_class.min()), float(effective))


def patient_draws(who: Sample, draws: int, seed: int) -> np.ndarray:
    """How often each patient is drawn, the number of patients of each stratum being kept.

    Depends on nothing but the sample and the seed: models that are compared see the same draws.

    Returns:
        (draws, G) float64 counts.
    """
    rng = np.random.default_rng([seed, 0])
    counts = np.zeros((draws, who.n_patients))
    row = np.arange(draws)[:, None]
    for stratum in np.unique(who.stratum):
        members = np.flatnonzero(who.stratum == stratum)
        picks = rng.integers(len(members), size=(draws, len(members)))
        cells = np.bincount((row * len(members) + picks).ravel(), minlength=draws * len(members))
        counts[:, members] = cells.reshape(draws, len(members))
    return counts


def seed_draws(n_seeds: int, draws: int, seed: int) -> np.ndarray:
    """How often each training seed is drawn, (draws, n_seeds); for the crossed bootstrap."""
    rng = np.random.default_rng([seed, 1])
    return rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), draws)


class Spread(NamedTuple):
    """How far a score would move on other patients (and training seeds)."""

    variance: float
    freedom: float
    """Degrees of freedom of ``variance``."""


def spread(
    values: np.ndarray, counts: np.ndarray, who: Sample, seeds: int = 1, seed_variance: float = 0.0
) -> Spread:
    """Unbiased variance of a score, from bootstrap draws.

    The variance V of the draws is biased for small samples: what patients do one at a time it
    counts (n-1)/n times, what they do in pairs three times (Owen, Annals of Applied Statistics 1
    (2007) 386, theorem 2, for rows and columns; positives and negatives here). For AUROC of 20
    cases and models that are much alike, where pairs are most of it, V alone would find one
    difference in a hundred instead of one in twenty.

    The part V_h of one class alone follows from covariances of draws and counts, the infinitesimal
    jackknife (Efron, JASA 109 (2014) 991, theorem 1); it holds the pairs as well, so that
    sum V_h n_h/(n_h-1) - (V - sum V_h) is unbiased for a two-sample U-statistic. Degrees of
    freedom combine those of the classes as in Satterthwaite, Biometrics Bulletin 2 (1946) 110.

    Args:
        values: (B,) score of each draw.
        counts: (B, G) of ``patient_draws``.
        who: was drawn.
        seeds: training seeds that were drawn along with the patients.
        seed_variance: unbiased variance of their mean score.
    """
    draws = len(values)
    total = float(values.var())
    centered = values - values.mean()
    # a finite number of draws adds total / draws to every squared covariance
    influence = (centered @ counts / draws) ** 2 - total / draws  # (G,)
    parts, sizes = [], []
    for s in np.unique(who.stratum):
        members = who.stratum == s
        if members.sum() > 1:
            parts.append(max(float(influence[members].sum()), 0.0))
            sizes.append(int(members.sum()))
    drawn = sum(parts)
    grown = [part * n / (n - 1) for part, n in zip(parts, sizes, strict=True)]
    freedoms = [n - 1 for n in sizes]
    if seeds > 1:
        drawn += seed_variance * (seeds - 1) / seeds
        grown.append(seed_variance)
        freedoms.append(seeds - 1)
    first = sum(grown)
    if not first > 0:
        return Spread(total, float(max(1, who.n_patients - 1)))
    pairs = max(total - drawn, 0.0)
    freedom = 1 / sum((part / first) ** 2 / n for part, n in zip(grown, freedoms, strict=True))
    return Spread(max(first - pairs, LEAST * total), float(freedom))
