"""Points to learn a detection from, candidates in a heat map, what each hits, and how soon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..targets import Lesion
from ..types import TaskCard
from ._training import resampled_patients

if TYPE_CHECKING:
    from ..lattice import Lattice

MOST_HIT_MM = 20.0
"""A candidate hits a lesion from within its radius (LUNA16), but from no farther than this: of a
lesion of 10 cm, its middle has to be found. LUNA16's nodules have radii up to 15 mm."""

MOST = 100
"""Candidates per scan. The curve ends at 8 false ones per scan, on average over scans."""


RATES = (1 / 16, 128.0)
"""False candidates per scan, in whose range the choice of the penalty counts."""

REFITS = 3
"""On resampled training patients, at the chosen penalty."""


def hit_mm(lesion: Lesion, card: TaskCard) -> float:
    """From how far a candidate hits a lesion.

    Its radius, up to ``MOST_HIT_MM``, but no less than the diagonal of a cell of the lattice: the
    nearest point of the lattice may be half of that away.
    """
    assert card.lattice_mm is not None  # noqa: S101  the lattice was made from it
    least = float(np.linalg.norm(card.lattice_mm))
    return max(least, min(lesion.diameter_mm / 2, MOST_HIT_MM))


def distances(points: np.ndarray, lesions: Sequence[Lesion]) -> np.ndarray:
    """(P, 3) scanner mm -> (P, L) mm to the centers."""
    centers = np.array([lesion.center for lesion in lesions]).reshape(-1, 3)
    return np.linalg.norm(points[:, None] - centers, axis=2)


@dataclass(frozen=True)
class Candidates:
    """Where a heat map of one image has its peaks, best first."""

    index: np.ndarray
    """(M, 3) int: points of the lattice."""
    score: np.ndarray
    """(M,) float64, falling."""

    def found(self, lattice: Lattice, lesions: Sequence[Lesion], card: TaskCard) -> np.ndarray:
        """(M,) int: see ``hits``."""
        reach = [hit_mm(lesion, card) for lesion in lesions]
        return hits(lattice.to_mm(self.index), lesions, reach)


def hits(points: np.ndarray, lesions: Sequence[Lesion], reach: Sequence[float]) -> np.ndarray:
    """(M, 3) scanner mm -> (M,) int: the lesion hit, the nearest one of several; -1 for none.

    Args:
        points: of candidates.
        lesions: of the image.
        reach: mm from the center of each within which it is hit.
    """
    if not lesions:
        return np.full(len(points), -1)
    away = distances(points, lesions)
    away = np.where(away <= reach, away, np.inf)
    return np.where(np.isfinite(away).any(1), away.argmin(1), -1)


def peaks(heat: np.ndarray, spacing: Sequence[float], apart_mm: float) -> Candidates:
    """Local maxima of a heat map, none nearer to a better one than ``apart_mm``.

    Of equal neighbours the first in C order stands for all: a flat map has one peak per ball.

    Args:
        heat: (x, y, z) finite.
        spacing: mm.
        apart_mm: radius of the suppression.
    """
    from scipy import ndimage

    flat = heat.ravel()
    tops = np.flatnonzero(flat >= ndimage.maximum_filter(heat, 3, mode="nearest").ravel())
    tops = tops[np.argsort(-flat[tops], kind="stable")]
    index = np.stack(np.unravel_index(tops, heat.shape), axis=1)
    place = index * np.asarray(spacing)
    alive = np.ones(len(tops), bool)
    kept: list[int] = []
    first = 0
    while len(kept) < MOST:
        left = np.flatnonzero(alive[first:])
        if len(left) == 0:
            break
        first += int(left[0])
        kept.append(first)
        alive &= ((place - place[first]) ** 2).sum(1) > apart_mm**2
    return Candidates(index[kept], flat[tops[kept]].astype(np.float64))


def sampled(
    lattice: Lattice, lesions: Sequence[Lesion], card: TaskCard, seed: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points of one image to learn from: a quarter or less in lesions, the rest anywhere else.

    Points between the radius from which a lesion is hit and its own say nothing.

    Args:
        lattice: of the image.
        lesions: of the case.
        card: of the task.
        seed: of the draw.
        most: points in all.

    Returns:
        (P, 3) indices and (P,) labels, 1 in a lesion.
    """
    rng = np.random.default_rng(seed)
    index = np.argwhere(np.ones(lattice.shape, bool))
    if lesions:
        away = distances(lattice.to_mm(index), lesions)
        reach = np.array([hit_mm(lesion, card) for lesion in lesions])
        inside = np.flatnonzero((away <= reach).any(1))
        radius = np.maximum(reach, [lesion.diameter_mm / 2 for lesion in lesions])
        outside = np.flatnonzero((away > radius).all(1))
    else:
        inside, outside = np.empty(0, int), np.arange(len(index))
    right = np.sort(rng.choice(inside, min(len(inside), most // 4), replace=False))
    wrong = np.sort(rng.choice(outside, min(len(outside), most - most // 4), replace=False))
    label = np.repeat([1, 0], [len(right), len(wrong)])
    return index[np.concatenate([right, wrong])], label


class Judged(NamedTuple):
    """Candidates of one image with their scores."""

    score: np.ndarray
    """(M,)."""
    found: np.ndarray
    """(M,) int: the lesion that each hits, or -1."""
    lesions: int
    """In the image."""


def soonest(tested: Sequence[Sequence[Judged]]) -> int:
    """Of several models, that which finds the lesions after the fewest false candidates.

    Args:
        tested: per model, the images of val; models from the strongest penalty on.

    Returns:
        Its index, of equal ones the first; the middle one where val has no lesion.
    """
    if not any(one.lesions for one in tested[0]):
        return len(tested) // 2
    return int(np.argmin([_wait(images) for images in tested]))


def _wait(images: Sequence[Judged]) -> float:
    """Mean log of how many false candidates per scan come before a lesion is found.

    It is the area above the FROC curve on a logarithmic axis, on which the CPM's rates are equally
    spaced, but finer than the CPM where val holds a handful of lesions.
    """
    wrong = np.sort(np.concatenate([one.score[one.found < 0] for one in images]))
    waits = []
    for one in images:
        for lesion in range(one.lesions):
            right = one.score[one.found == lesion]
            before = np.inf
            if len(right):
                before = len(wrong) - np.searchsorted(wrong, right.max(), "left")
            waits.append(np.log(np.clip(before / len(images), *RATES)))
    return float(np.mean(waits))


def draws(patient: np.ndarray, needed: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """How often each training case counts in each refit.

    Args:
        patient: (N,) of the cases.
        needed: (N,) bool each: cases of which every draw has to hold one, as there would be
            nothing to tell apart.
        seed: of the draws.
    """
    drawn = resampled_patients(patient, seed, 100 * REFITS)
    return [counts for counts in drawn if all(counts[one].any() for one in needed)][:REFITS]
