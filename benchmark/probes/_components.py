"""Principal components of one level of maps, so that no encoder wins by the number of its channels.

Channels are standardised, rotated onto their principal axes, and each of the first ``MOST`` axes is
scaled to an SD of 1. All of it is one affine map per voxel, and so it may be applied before or
after linear interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from ..errors import ProbeError

MOST = 64
"""Components per level, of every encoder."""

LEAST_SHARE = 1e-6
"""Of the variance of the first component, below which one is left out: maps are stored in float16,
whose rounding has a variance of about 1e-7 of a channel's square."""

_CHUNK = 16_384
"""Rows that are float64 at once: 100 MB of 768 channels."""


@dataclass(frozen=True)
class Components:
    """Affine map from the C channels of a level to at most ``MOST`` numbers of mean 0 and SD 1."""

    weight: np.ndarray
    """(k, C) float64."""
    offset: np.ndarray
    """(k,) float64."""

    @classmethod
    def fit(
        cls,
        parts: Sequence[np.ndarray],
        weights: Sequence[np.ndarray] | None = None,
        most: int = MOST,
    ) -> Components:
        """Fit on voxels of training cases.

        Args:
            parts: (P_i, C) voxels of one level, one array per case.
            weights: (P_i,) what each voxel stands for; None: all alike.
            most: components to keep.

        Raises:
            ProbeError: no voxel, or values that are not finite.
        """
        if weights is None:
            weights = [np.ones(len(part)) for part in parts]
        chunks = [
            (part[start : start + _CHUNK], np.asarray(weight[start : start + _CHUNK], np.float64))
            for part, weight in zip(parts, weights, strict=True)
            for start in range(0, len(part), _CHUNK)
        ]
        total = sum(float(weight.sum()) for _, weight in chunks)
        if total <= 0:
            raise ProbeError("There is no training voxel to fit components on.")
        mean = np.asarray(sum(w @ x.astype(np.float64) for x, w in chunks)) / total
        covariance = np.zeros((len(mean), len(mean)))
        for x, w in chunks:
            centred = (x.astype(np.float64) - mean) * np.sqrt(w)[:, None]
            covariance += centred.T @ centred
        covariance /= total
        if not np.isfinite(covariance).all():
            raise ProbeError(
                "The maps hold values that are not finite. An encoder has to give finite maps."
            )
        sd = np.sqrt(covariance.diagonal())
        # relative to the mean: a constant channel keeps an SD of rounding errors
        alive = sd > 1e-6 * np.abs(mean) + 1e-12
        if not alive.any():
            # a level that says nothing: one component that is 0 everywhere
            return cls(np.zeros((1, len(mean))), np.zeros(1))
        scale = np.where(alive, 1 / np.where(alive, sd, 1), 0.0)
        size, axes = linalg.eigh(covariance * scale * scale[:, None])
        size, axes = size[::-1][:most], axes[:, ::-1][:, :most]
        kept = size > LEAST_SHARE * size[0]
        size, axes = size[kept], axes[:, kept]
        # an axis has two directions: the one in which its largest entry is positive
        axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
        weight = (axes / np.sqrt(size)).T * scale
        return cls(weight, -weight @ mean)

    @property
    def count(self) -> int:
        """K."""
        return len(self.offset)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(P, C) -> (P, k) float32."""
        out = np.empty((len(x), self.count), np.float32)
        for start in range(0, len(x), _CHUNK):
            part = x[start : start + _CHUNK].astype(np.float64)
            out[start : start + _CHUNK] = part @ self.weight.T + self.offset
        return out

    def field(self, values: np.ndarray) -> np.ndarray:
        """(C, ...) -> (k, ...) float32, such as the values of a level."""
        return affine_field(values, self.weight, self.offset)


def affine_field(values: np.ndarray, weight: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """One affine map at every voxel.

    Args:
        values: (C, ...), float16 or float32.
        weight: (k, C).
        offset: (k,).

    Returns:
        (k, ...) float32.
    """
    flat = values.reshape(len(values), -1)
    out = np.empty((len(offset), flat.shape[1]), np.float32)
    matrix, shift = weight.astype(np.float32), offset.astype(np.float32)[:, None]
    for start in range(0, flat.shape[1], _CHUNK):
        part = flat[:, start : start + _CHUNK].astype(np.float32)
        out[:, start : start + _CHUNK] = matrix @ part + shift
    return out.reshape(len(offset), *values.shape[1:])
