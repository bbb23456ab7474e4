"""Log-odds of being in a lesion at every point of an image, from maps and from the place alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EncoderError
from ..newton import primal_path
from ._components import Components, affine_field

if TYPE_CHECKING:
    from ..dense import Lattice, Pyramid


POINTS_IN_ALL = 40_000
"""To learn from, at most: with 320 components, 100 MB in float64."""

PENALTIES = 10.0 ** np.arange(0, 6)
"""C, which multiplies the mean log-loss over points: from a map that is hardly more than the share
of points in lesions to one that is hardly penalised, on features of SD 1."""


@dataclass(frozen=True)
class Sample:
    """Points of one image, and what the encoder says there."""

    lattice: Lattice
    index: np.ndarray
    """(P, 3), also fractions."""
    label: np.ndarray
    """(P,) 1 in a lesion."""
    levels: list[np.ndarray]
    """Per level (P, C)."""


@dataclass(frozen=True)
class Heat:
    """One affine map per level, and one of the place: log-odds at every point, per penalty."""

    levels: list[tuple[np.ndarray, np.ndarray]]
    """Per level (P, C) and (P,)."""
    place: tuple[np.ndarray, np.ndarray]
    """(P, 9) and (P,)."""

    def one(self, penalty: int) -> Heat:
        """That of one penalty: P is 1."""
        which = slice(penalty, penalty + 1)
        weight, offset = self.place
        return Heat([(w[which], o[which]) for w, o in self.levels], (weight[which], offset[which]))

    def of(self, pyramid: Pyramid) -> np.ndarray:
        """(P, *lattice.shape) float32."""
        from ..dense import spread

        shape = pyramid.lattice.shape
        every = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1)
        weight, offset = self.place
        place = _place(every, shape) @ weight.T + offset
        out = place.T.reshape(-1, *shape).astype(np.float32)
        for level, (weight, offset) in zip(pyramid.levels, self.levels, strict=True):
            field = affine_field(level.values, weight, offset)
            out += spread(field, level.factor, shape)
        return out

    def at(self, pyramid: Pyramid, index: np.ndarray) -> np.ndarray:
        """(P, M) float64 at (M, 3) indices of the lattice, also fractions."""
        weight, offset = self.place
        out = _place(index, pyramid.lattice.shape) @ weight.T + offset
        for level, (weight, offset) in zip(pyramid.at(index), self.levels, strict=True):
            out += level @ weight.T + offset
        return out.T


def with_maps(encoder: str, pyramid: Pyramid) -> Pyramid:
    """The same.

    Raises:
        EncoderError: it has no levels.
    """
    if not pyramid.levels:
        raise EncoderError(
            f"Encoder '{encoder}' has no maps, and places are told apart by them. Add strides to "
            "its card and a method maps(), or leave this protocol out."
        )
    return pyramid


def _place(index: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(P, 3) indices -> (P, 9): x, y, z from -1 to 1 across the field of view, and products."""
    half = np.maximum((np.asarray(shape) - 1) / 2, 0.5)
    x, y, z = ((index - (np.asarray(shape) - 1) / 2) / half).T
    return np.stack([x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)


def fit(
    parts: Sequence[Sample],
    counts: np.ndarray,
    components: Sequence[Components],
    penalties: np.ndarray,
) -> Heat:
    """Logistic regression at every penalty, as affine maps of the channels.

    Args:
        parts: points of images.
        counts: (parts,) how often each counts.
        components: of the levels.
        penalties: rising.
    """
    parts = [part for part, count in zip(parts, counts, strict=True) if count]
    weight = np.repeat(counts[counts > 0], [len(part.label) for part in parts]).astype(np.float64)
    label = np.concatenate([part.label for part in parts])
    columns = [
        of.apply(np.concatenate([part.levels[level] for part in parts]))
        for level, of in enumerate(components)
    ]
    place = np.concatenate([_place(part.index, part.lattice.shape) for part in parts])
    mean, sd = place.mean(0), np.maximum(place.std(0), 1e-6)
    x = np.column_stack([*columns, (place - mean) / sd]).astype(np.float64)
    weights = np.stack(list(primal_path(x, label, penalties / weight.sum(), weight)))
    levels, start = [], 0
    for of in components:
        w = weights[:, start : start + of.count]
        levels.append((w @ of.weight, w @ of.offset))
        start += of.count
    w = weights[:, start:-1] / sd
    return Heat(levels, (w, weights[:, -1] - w @ mean))
