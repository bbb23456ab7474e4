"""Trilinear interpolation on a separable lattice, compiled; imported when voxels are resampled.

Every output axis has a table of the two source indices and the weight between them. The kernel
blends the four lines around an output line, which the compiler vectorises, then interpolates
along the blended line. Without fast-math: the same voxels give the same bits on every processor.
"""

from typing import NamedTuple

import numba
import numpy as np


class Samples(NamedTuple):
    """Where the samples along one axis lie between the voxels of that axis."""

    lower: np.ndarray
    """(n,) int64."""
    upper: np.ndarray
    """(n,) int64, ``lower`` + 1, or ``lower`` at the last voxel."""
    weight: np.ndarray
    """(n,) float32 in [0, 1): the share of ``upper``."""

    @classmethod
    def at(cls, position: np.ndarray, n: int) -> "Samples":
        """Samples at voxel coordinates; beyond the outermost of ``n`` voxel centers they clamp."""
        inside = np.clip(position, 0, n - 1)
        lower = np.floor(inside).astype(np.int64)
        weight = (inside - lower).astype(np.float32)
        return cls(lower, np.minimum(lower + 1, n - 1), weight)


def trilinear(voxels: np.ndarray, x: Samples, y: Samples, z: Samples) -> np.ndarray:
    """Interpolate voxels (X, Y, Z) float32, any memory order, at the samples of the three axes.

    Returns:
        (len(x), len(y), len(z)) float32, in the memory order of the voxels.
    """
    # the axes are independent: take them in the order of memory, so that lines are contiguous
    order = sorted(range(3), key=lambda axis: -abs(voxels.strides[axis]))
    source = np.ascontiguousarray(voxels.transpose(order), dtype=np.float32)
    samples = (x, y, z)
    a, b, c = (samples[axis] for axis in order)
    out = np.empty((len(a.weight), len(b.weight), len(c.weight)), np.float32)
    _trilinear(source, *a, *b, *c, out)
    return out.transpose(np.argsort(order))


@numba.njit(cache=True, nogil=True)
def _trilinear(voxels, x0, x1, wx, y0, y1, wy, z0, z1, wz, out):  # noqa: ANN001, ANN202
    one = np.float32(1)
    first, last = z0[0], z1[-1] + 1  # positions ascend: only this part of a line is read
    line = np.empty(voxels.shape[2], np.float32)
    for i in range(len(x0)):
        for j in range(len(y0)):
            w00 = (one - wx[i]) * (one - wy[j])
            w01 = (one - wx[i]) * wy[j]
            w10 = wx[i] * (one - wy[j])
            w11 = wx[i] * wy[j]
            a, b = voxels[x0[i], y0[j]], voxels[x0[i], y1[j]]
            c, d = voxels[x1[i], y0[j]], voxels[x1[i], y1[j]]
            for k in range(first, last):
                line[k] = w00 * a[k] + w01 * b[k] + w10 * c[k] + w11 * d[k]
            for k in range(len(z0)):
                out[i, j, k] = (one - wz[k]) * line[z0[k]] + wz[k] * line[z1[k]]


@numba.njit(cache=True, nogil=True)
def ramp(values, low, high, scale, base):  # noqa: ANN001, ANN201
    """``base + scale * (clip(v, low, high) - low)`` in place on a flat float32 array.

    In float64, so that neither tiny nor huge scanner units overflow on the way.
    """
    for i in range(values.size):
        values[i] = base + scale * (min(max(np.float64(values[i]), low), high) - low)
