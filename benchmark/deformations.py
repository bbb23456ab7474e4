"""What a displacement field does to labels and points, how smooth it is, and how far it is off.

A displacement is in mm along the axes of the fixed image's array (RAS+): the fixed voxel at x is
at x + u(x) in the moving image. Images are pulled, never pushed: each voxel of the fixed image
looks its value up. Arrays are taken slab by slab, so that a large CT needs little memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .lattice import Lattice
from .types import Shape, Volume

SLAB_VOXELS = 2**22
"""Voxels that are handled at once: 100 MB of coordinates."""

LEAST_JACOBIAN = 1e-3
"""Below which a determinant counts as this much before the logarithm is taken: a fold has none.
Ours; Learn2Reg adds 3 to all determinants instead, which makes every field look smooth."""


class Carried(NamedTuple):
    """A moving image on the voxels of the fixed one."""

    volume: Volume
    seen: np.ndarray
    """(X, Y, Z) bool: where the moving image has voxels; elsewhere its least value stands."""


def carried(
    moving: Volume, shape: Shape, affine: np.ndarray, displacement: np.ndarray | None = None
) -> Carried:
    """Resample an image onto the voxels of another one, by scanner coordinates, trilinear.

    A voxel of the result has the value of the nearest moving voxel up to half a voxel beyond the
    outermost centers; what lies farther out is not seen.

    Args:
        moving: any unit and grid.
        shape: X, Y, Z of the fixed image.
        affine: of the fixed image.
        displacement: (3, X, Y, Z) mm, by which voxels are moved first; None: not at all.
    """
    from scipy import ndimage

    channels, *size = moving.voxels.shape
    voxels = np.empty((channels, *shape), np.float32)
    seen = np.empty(shape, bool)
    for part, index in _looked_up(shape, affine, displacement, moving.affine):
        inside = _inside(index, size)
        seen[part] = inside
        for channel, source in zip(voxels, moving.voxels, strict=True):
            found = ndimage.map_coordinates(source, index, order=1, mode="nearest")
            channel[part] = np.where(inside, found, source.min())
    return Carried(Volume(voxels, affine, moving.unit), seen)


def at_voxels(lattice: Lattice, displacement: np.ndarray) -> np.ndarray:
    """Displacements (3, *lattice.shape) at every voxel of the image: (3, X, Y, Z) float32 mm.

    Trilinear; beyond the lattice those of its border.
    """
    from . import interpolation

    samples = []
    for positions, n in zip(lattice.positions, lattice.image_shape, strict=True):
        points = np.arange(len(positions), dtype=float)
        index = np.interp(np.arange(n), positions, points)  # clamped at both ends
        samples.append(interpolation.Samples.at(index, len(positions)))
    return np.stack([interpolation.trilinear(u, *samples) for u in displacement])


def pulled_labels(
    labels: np.ndarray, labels_affine: np.ndarray, displacement: np.ndarray, affine: np.ndarray
) -> np.ndarray:
    """The moving image's labels where the fixed image's voxels are moved to; nearest neighbor.

    Args:
        labels: (X', Y', Z') of the moving image.
        labels_affine: of the moving image.
        displacement: (3, X, Y, Z) mm.
        affine: of the fixed image.

    Returns:
        (X, Y, Z), the dtype of the labels; 0 beyond the moving image.
    """
    x, y, z = displacement.shape[1:]
    out = np.zeros((x, y, z), labels.dtype)
    for part, index in _looked_up((x, y, z), affine, displacement, labels_affine):
        inside = _inside(index, labels.shape)
        nearest = np.floor(index[:, inside] + 0.5).astype(np.int64)
        last = np.array(labels.shape)[:, None] - 1
        a, b, c = np.clip(nearest, 0, last)  # half a voxel beyond the last center
        values = np.zeros(inside.shape, labels.dtype)
        values[inside] = labels[a, b, c]
        out[part] = values
    return out


def end_point_error(found: np.ndarray, true: np.ndarray) -> float:
    """Mean distance in mm of two fields (3, X, Y, Z), over the voxels where the truth is known.

    NaN where the truth is nowhere known (finite).
    """
    known = np.isfinite(true).all(0)
    if not known.any():
        return math.nan
    apart = found[:, known].astype(np.float64) - true[:, known]
    return float(np.sqrt((apart**2).sum(0)).mean())


def landmark_error(
    points: np.ndarray, partners: np.ndarray, displacement: np.ndarray, affine: np.ndarray
) -> float:
    """Target registration error: mean distance in mm of moved landmarks to their partners.

    Args:
        points: (L, 3) scanner mm in the fixed image.
        partners: (L, 3) scanner mm in the moving image.
        displacement: (3, X, Y, Z) mm.
        affine: of the fixed image.
    """
    from scipy import ndimage

    back = np.linalg.inv(affine)
    index = (points @ back[:3, :3].T + back[:3, 3]).T
    moved = [ndimage.map_coordinates(u, index, order=1, mode="nearest") for u in displacement]
    to = points + np.stack(moved, axis=1) @ _directions(affine).T
    return float(np.linalg.norm(to - partners, axis=1).mean())


def jacobian(displacement: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Determinant of the Jacobian of x + u(x): by how much a volume grows, (x, y, z) float64.

    Central differences inside, one-sided at the border.

    Args:
        displacement: (3, x, y, z) mm, on points of this spacing.
        spacing: mm.
    """
    gradient = np.zeros((*displacement.shape[1:], 3, 3))
    for i, u in enumerate(displacement.astype(np.float64)):
        for j, mm in enumerate(spacing):
            if u.shape[j] > 1:
                gradient[..., i, j] = np.gradient(u, mm, axis=j)
    return np.linalg.det(np.eye(3) + gradient)


def smoothness(determinant: np.ndarray) -> tuple[float, float]:
    """SD of the logarithm of the determinants, and the share of points where space is folded."""
    logarithm = np.log(np.maximum(determinant, LEAST_JACOBIAN))
    return float(logarithm.std()), float((determinant <= 0).mean())


def _looked_up(
    shape: Shape, affine: np.ndarray, displacement: np.ndarray | None, moving_affine: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Slabs of the fixed image, and the moving image's voxel coordinates (3, ...) of each."""
    to_moving = np.linalg.inv(moving_affine) @ affine
    along = to_moving[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)  # per mm of displacement
    rows = max(1, SLAB_VOXELS // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        part = slice(start, min(shape[0], start + rows))
        axes = (np.arange(part.start, part.stop), np.arange(shape[1]), np.arange(shape[2]))
        grid = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float64)
        index = np.einsum("ij,jxyz->ixyz", to_moving[:3, :3], grid)
        index += to_moving[:3, 3][:, None, None, None]
        if displacement is not None:
            index += np.einsum("ij,jxyz->ixyz", along, displacement[:, part])
        yield part, index


def _inside(index: np.ndarray, shape: list[int] | tuple[int, ...]) -> np.ndarray:
    """Whether voxel coordinates (3, ...) are at most half a voxel beyond the image's centers."""
    last = np.array(shape)[:, None, None, None] - 0.5
    return np.asarray(((index >= -0.5) & (index <= last)).all(0))


def _directions(affine: np.ndarray) -> np.ndarray:
    """(3, 3): unit vectors of the array's axes as columns, scanner coordinates."""
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
