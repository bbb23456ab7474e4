"""Drawing patients with replacement, and what the spread of the draws says."""

from dataclasses import dataclass

import numpy as np

from .types import Kind


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
    return Sample(member, stratum, int(per_class.min(initial=0)), float(effective))


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


def degrees_of_freedom(
    values: np.ndarray, counts: np.ndarray, stratum: np.ndarray, extra: tuple[float, int] = (0.0, 0)
) -> float:
    """Satterthwaite's degrees of freedom of the variance of the draws.

    The share of each stratum in the variance comes from the covariances of draws and counts: the
    infinitesimal jackknife after the bootstrap (Efron, JASA 109 (2014) 991, theorem 1), without
    the part that a finite number of draws adds. Shares and sizes then combine as in Satterthwaite,
    Biometrics Bulletin 2 (1946) 110.

    Args:
        values: (B,) score of each draw.
        counts: (B, G) of ``patient_draws``.
        stratum: (G,).
        extra: variance and degrees of freedom of another, independent source (training seeds).
    """
    draws = len(values)
    centered = values - values.mean()
    influence = (centered @ counts / draws) ** 2 - values.var() / draws  # (G,)
    sizes, variances = [], []
    for s in np.unique(stratum):
        members = stratum == s
        if members.sum() > 1:
            sizes.append(members.sum() - 1)
            variances.append(max(influence[members].sum(), 0.0))
    if extra[1] > 0:
        sizes.append(extra[1])
        variances.append(extra[0])
    total = sum(variances)
    if not total > 0:
        return float(max(1, min(sizes, default=1)))
    return float(1 / sum((v / total) ** 2 / n for v, n in zip(variances, sizes, strict=True)))
