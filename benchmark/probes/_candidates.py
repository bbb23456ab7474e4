"""Points to learn a detection from, candidates in a heat map, and which lesion each hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..targets import Lesion
from ..types import TaskCard

if TYPE_CHECKING:
    from ..lattice import Lattice

MOST_HIT_MM = 20.0
"""A candidate hits a lesion from within its radius (LUNA16), but from no farther than this: of a
lesion of 10 cm, its middle has to be found. LUNA16's nodules have radii up to 15 mm."""

MOST = 100
"""Candidates per scan. The curve ends at 8 false ones per scan, on average over scans."""


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
        """(M,) int: the lesion that each hits, the nearest one of several; -1 for none."""
        if not lesions:
            return np.full(len(self.index), -1)
        away = distances(lattice.to_mm(self.index), lesions)
        away = np.where(away <= [hit_mm(lesion, card) for lesion in lesions], away, np.inf)
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
