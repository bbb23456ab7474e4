"""Drawing patients with replacement, and what the spread of the draws says."""

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from .types import Answer

LEAST = 0.25
"""The unbiased variance for nearly equal predictions can be 0 or less by chance. It is taken to be
at least this share of that of the draws, which is three times too large at worst."""


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
    """Patients' worth of a mean over classes, at most. Two classes of m and n patients: 4mn/(m+n),
    of which the mean of sensitivity and specificity has the variance of a share. K classes: as if
    the K scores of one class against the rest, e_k = 4 m_k n_k / (m_k + n_k), were independent,
    K^2 / sum(1 / e_k). For values, G."""

    @property
    def n_patients(self) -> int:
        """G."""
        return len(self.stratum)


def sample(kind: Answer, target: np.ndarray, patient: np.ndarray, n_classes: int = 0) -> Sample:
    """Group cases by patient.

    Args:
        kind: of the answers.
        target: (N, ...).
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
    return Sample(member, stratum, int(per_class.min()), _effective(per_class[per_class > 0]))


def _effective(present: np.ndarray) -> float:
    rest = present.sum() - present
    if len(present) < 2:
        return float(present.sum())
    of_class = 4 * present * rest / (present + rest)
    if len(present) == 2:
        return float(of_class[0])
    return float(len(present) ** 2 / (1 / of_class).sum())


def patient_draws(who: Sample, draws: int, seed: int) -> np.ndarray:
    """How often each patient is drawn, the number of patients of each stratum being kept.

    Depends on nothing but the sample and the seed: models that are compared see the same draws.

    Returns:
        (draws, G) float64 counts.
    """
    rng = np.random.default_rng([seed, 0])
    counts = np.zeros((draws, who.n_patients))
    for stratum in np.unique(who.stratum):
        members = np.flatnonzero(who.stratum == stratum)
        n = len(members)
        picks = rng.integers(n, size=(draws, n))
        picks += n * np.arange(draws)[:, None]
        counts[:, members] = np.bincount(picks.ravel(), minlength=draws * n).reshape(draws, n)
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
    values: np.ndarray,
    counts: np.ndarray,
    who: Sample,
    pairs: bool = False,
    seeds: int = 1,
    seed_variance: float = 0.0,
) -> Spread:
    """Variance of a score from bootstrap draws, corrected for small samples.

    Draws from n patients vary (n-1)/n times what n patients do (Hesterberg, The American
    Statistician 69 (2015) 371): each stratum's part V_h is multiplied by n_h/(n_h-1). V_h follows
    from covariances of draws and counts, the infinitesimal jackknife (Efron, JASA 109 (2014) 991,
    theorem 1). Degrees of freedom combine those of the strata as in Satterthwaite, Biometrics
    Bulletin 2 (1946) 110.

    What pairs of a positive and a negative do beyond what each does alone, the draws count three
    times (Owen, Annals of Applied Statistics 1 (2007) 386, theorem 2): once in their variance and
    once in every V_h. For AUROC it is therefore taken off twice, which leaves no bias. It matters
    for the difference of models that are much alike, where pairs are nearly all there is: at 20
    cases the draws alone would find one false difference in a hundred, not in twenty.
    What patients and training seeds do together is counted three times as well and is left so: a
    handful of seeds is too few to take it off reliably.

    Args:
        values: (B,) score of each draw.
        counts: (B, G) of ``patient_draws``.
        who: was drawn.
        pairs: the score is a mean over pairs of cases of two classes.
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
    if seeds > 1:
        parts.append(seed_variance * (seeds - 1) / seeds)
        sizes.append(seeds)
    drawn = sum(parts)
    if not drawn > 0:
        return Spread(total, float(max(1, who.n_patients - 1)))
    grown = [part * n / (n - 1) for part, n in zip(parts, sizes, strict=True)]
    first = sum(grown)
    freedom = 1 / sum((part / first) ** 2 / (n - 1) for part, n in zip(grown, sizes, strict=True))
    if pairs and len(parts) > 1 and seeds == 1:
        growth = [n / (n - 1) for n in sizes]
        of_pairs = float(np.mean([a * b for a, b in combinations(growth, 2)]))
        variance = max(first - max(total - drawn, 0.0) * of_pairs, LEAST * total)
    else:
        variance = total * first / drawn
    return Spread(variance, float(freedom))
