"""The points in mm at which dense protocols read every encoder, and the way to them and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import grids
from .errors import ProbeError, VolumeError
from .types import Shape, TaskCard, Triple

SLAB_VOXELS = 2**24
"""Voxels of the image that ``to_native`` handles at once: 64 MB per float32 array."""


@dataclass(frozen=True)
class Lattice:
    """The points of one image at which every encoder is read."""

    shape: Shape
    spacing: Triple
    """mm along X, Y, Z: ``TaskCard.lattice_mm``."""
    affine: np.ndarray
    """(4, 4) float64: index of the lattice to scanner mm."""
    image_shape: Shape
    positions: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Per axis, the image's voxel coordinates of the lattice, float64, ascending."""
    image_affine: np.ndarray
    """(4, 4) float64: voxel index of the image to scanner mm."""
    box_mm: Triple
    """The central box that the question is about, as far as the image reaches."""

    @property
    def image_spacing(self) -> Triple:
        """Of the image, mm."""
        x, y, z = (float(mm) for mm in np.linalg.norm(self.image_affine[:3, :3], axis=0))
        return (x, y, z)

    def to_mm(self, index: np.ndarray) -> np.ndarray:
        """(P, 3) indices of the lattice, also fractions -> (P, 3) scanner mm."""
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index_of(self, points: np.ndarray) -> np.ndarray:
        """(P, 3) scanner mm -> (P, 3) float64 indices of the lattice, perhaps outside of it."""
        back = np.linalg.inv(self.affine)
        return points @ back[:3, :3].T + back[:3, 3]


def lattice_of(image_shape: Sequence[int], affine: np.ndarray, card: TaskCard) -> Lattice:
    """The lattice of an image: around its center, over the task's field of view.

    Args:
        image_shape: X, Y, Z.
        affine: of the image, (4, 4), axes nearest to RAS+.
        card: of the task.

    Raises:
        ProbeError: the task states no lattice.
        VolumeError: the image is not in RAS+ order, or the lattice would be too large.
    """
    if card.lattice_mm is None:
        raise ProbeError(
            f"Task '{card.name}' has no lattice_mm, so there are no points at which maps are read. "
            "State on its card the spacing in mm on which dense protocols work."
        )
    positions, placed, box = grids.lattice(
        image_shape, affine, card.lattice_mm, card.field_of_view_mm
    )
    x, y, z = (len(p) for p in positions)
    a, b, c = image_shape
    return Lattice((x, y, z), card.lattice_mm, placed, (a, b, c), positions, affine, box)


def labels_on(lattice: Lattice, labels: np.ndarray) -> np.ndarray:
    """A label map (X, Y, Z) of the image at the points of the lattice, nearest neighbor."""
    _check_image(lattice, labels.shape)
    nearest = [
        np.clip(np.floor(p + 0.5), 0, n - 1).astype(np.int64)
        for p, n in zip(lattice.positions, labels.shape, strict=True)
    ]
    return labels[np.ix_(*nearest)]


def to_native(lattice: Lattice, values: np.ndarray) -> np.ndarray:
    """The class of largest value at every voxel of the image.

    Args:
        lattice: of the image.
        values: (K, *lattice.shape), K up to 255 scores or probabilities; trilinear in between.

    Returns:
        (X, Y, Z) uint8; 0 outside of the field of view. Of equal values the first class wins.
    """
    from . import interpolation

    if values.shape[1:] != lattice.shape or len(values) > 255:
        raise ProbeError(
            f"Scores of shape {values.shape} do not fit a lattice {lattice.shape}: (K, X, Y, Z) on "
            "the lattice is expected, K at most 255. Resample them first, see Pyramid.full."
        )
    out = np.zeros(lattice.image_shape, np.uint8)
    inside, samples = [], []
    for axis, n in enumerate(lattice.image_shape):
        mm = lattice.image_spacing[axis]
        voxels = np.arange(n)
        # the box is central; the margin keeps a voxel on its border in, whatever rounding does
        inner = voxels[np.abs(voxels - (n - 1) / 2) * mm <= lattice.box_mm[axis] / 2 + 1e-6 * mm]
        inside.append(slice(inner[0], inner[-1] + 1) if len(inner) else slice(0, 0))
        where = (inner - lattice.positions[axis][0]) * (mm / lattice.spacing[axis])
        samples.append(interpolation.Samples.at(where, lattice.shape[axis]))
    x, y, z = samples
    target = out[tuple(inside)]
    rows = max(1, SLAB_VOXELS // max(1, target[0].size if len(target) else 1))
    for start in range(0, len(target), rows):
        part = interpolation.Samples(*(a[start : start + rows] for a in x))
        best = interpolation.trilinear(values[0], part, y, z)
        slab = target[start : start + rows]
        for k in range(1, len(values)):
            other = interpolation.trilinear(values[k], part, y, z)
            better = other > best
            slab[better] = k
            best[better] = other[better]
    return out


def _check_image(lattice: Lattice, shape: Sequence[int]) -> None:
    if tuple(shape) != lattice.image_shape:
        raise VolumeError(
            f"A label map of {tuple(shape)} voxels does not belong to an image of "
            f"{lattice.image_shape}: the same voxels are expected. Check the task's labels."
        )
