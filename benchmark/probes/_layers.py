"""Linear layers per voxel: principal components and logistic regression as one affine map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ._components import Components, affine_field
from ._logistic import logistic_path
from ._segmentation import dice_of

if TYPE_CHECKING:
    from ..dense import Pyramid

BIASES = tuple(sorted(np.arange(-2.0, 5.01, 0.5).tolist(), key=abs))
"""Added to a class's log-odds. A Dice-optimal threshold of calibrated probabilities is at most one
half (Lipton, Elkan & Naryanaswamy, Optimal thresholding of classifiers to maximize F1 measure,
ECML 2014, theorem 1), down to e^-5 for what is hardly seen; the few negative ones correct fits
that are not calibrated."""

SWEEPS = 2
"""Over the classes, when biases are chosen one class at a time."""


@dataclass(frozen=True)
class Layer:
    """One affine map per level, summed: what components and regression amount to."""

    levels: tuple[int, ...]
    weights: tuple[np.ndarray, ...]
    """(K, C_l) of each level."""
    offset: np.ndarray
    """(K,) float64."""

    def logits(self, pyramid: Pyramid) -> Pyramid:
        """The same pyramid with (K, ...) instead of the levels' channels, without the offset."""
        reduced = tuple(
            replace(
                pyramid.levels[level],
                values=affine_field(pyramid.levels[level].values, weight, np.zeros(len(weight))),
            )
            for level, weight in zip(self.levels, self.weights, strict=True)
        )
        return replace(pyramid, levels=reduced)

    def __call__(self, pyramid: Pyramid) -> np.ndarray:
        """(K, *lattice.shape) float32 probabilities."""
        reduced = self.logits(pyramid)
        total = np.broadcast_to(
            self.offset.astype(np.float32)[:, None, None, None],
            (len(self.offset), *pyramid.lattice.shape),
        ).copy()
        for level in range(len(reduced.levels)):
            total += reduced.full(level)
        total -= total.max(0)
        np.exp(total, out=total)
        total /= total.sum(0)
        return total


def logistic_maps(
    x: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    penalties: Sequence[float] | np.ndarray,
    n_classes: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logistic regressions as affine maps to log-probabilities, up to a shift of all classes.

    An affine map is known from its values at the origin and at the unit vectors.

    Args:
        x: (n, F).
        label: (n,).
        weight: (n,).
        penalties: values of C, rising.
        n_classes: K.

    Returns:
        (K, F) and (K,) of each penalty; a class that training lacks is never the likeliest.
    """
    width = x.shape[1]
    asked = np.concatenate([np.zeros((1, width)), np.eye(width)])
    found = []
    for p in logistic_path(x, label, penalties, asked, n_classes, weight):
        known = p.min(0) > 0
        logs = np.log(p[:, known])
        logs -= logs.mean(1, keepdims=True)
        w, b = np.zeros((n_classes, width)), np.full(n_classes, NEVER)
        w[known], b[known] = (logs[1:] - logs[0]).T, logs[0]
        found.append((w, b))
    return found


NEVER = -1e4
"""Log-odds of a class that no training voxel has."""


def merged(
    levels: Sequence[int], components: Sequence[Components], w: np.ndarray, b: np.ndarray
) -> Layer:
    """Components and regression as one affine map."""
    ends = np.cumsum([one.count for one in components])
    split = np.split(w, ends[:-1], axis=1)
    weights = tuple(part @ one.weight for part, one in zip(split, components, strict=True))
    shift = sum(part @ one.offset for part, one in zip(split, components, strict=True))
    return Layer(tuple(levels), weights, b + shift)


def biased(layer: Layer, biases: np.ndarray) -> Layer:
    """The same layer with (K,) added to its log-odds."""
    return replace(layer, offset=layer.offset + biases)


def best_biases(
    logits: np.ndarray, truth: np.ndarray, weight: np.ndarray, case: np.ndarray, n_classes: int
) -> tuple[float, np.ndarray]:
    """The best Dice, and the (K,) biases that give it; that of the background is 0.

    One class after the other takes the bias that is best while the others stay, of equal ones the
    smallest.

    Args:
        logits: (P, K).
        truth: (P,) labels.
        weight: (P,).
        case: (P,) int.
        n_classes: K.
    """
    biases = np.zeros(n_classes)
    best = dice_of(truth, logits.argmax(1), weight, case, n_classes)
    for _ in range(SWEEPS):
        before = best
        for k in range(1, n_classes):
            others = logits + biases.astype(np.float32)
            others[:, k] = -np.inf
            rival = others.argmax(1)
            lead = logits[:, k] - others[np.arange(len(others)), rival]
            for bias in BIASES:
                predicted = np.where(lead + bias > 0, k, rival)
                dice = dice_of(truth, predicted, weight, case, n_classes)
                if dice > best:
                    best, biases[k] = dice, bias
        if best == before:
            break
    return best, biases
