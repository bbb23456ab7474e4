"""Feature maps of one image, of any encoder, on the lattice in mm that the task states.

The encoder is shown what it would be shown for its embedding, at its own spacing and intensity,
but everywhere: where the field of view is larger than its grid, overlapping tiles cover it, also
where the embedding is made of a central crop alone (``sliding_window``). Each map is brought to a
lattice of the task's spacing times a power of two, as coarse as the map allows, so that every
encoder is read at the same points and a model that picks a finer grid gains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import intensity
from .errors import EncoderError
from .features import FrozenEncoder
from .lattice import Lattice, lattice_of
from .sliding_window import blended, check_alone, show
from .types import Intensity, MinMax, Shape, TaskCard, Unit, Volume, Window

LARGEST_HALF = 6e4
"""Magnitude up to which a level is kept in float16, whose largest number is 65504."""

IMAGE: Mapping[Unit, Intensity] = {
    "HU": Window(-1000.0, 1000.0),
    "scanner": MinMax(),
    "relative": Window(0.0, 1.0),
}
"""How the image itself is scaled for protocols that see it beside the maps: from air to dense bone,
by percentiles, or not. Not the encoder's own transform: a display window that hides the lung would
take the image from one encoder and leave it to another."""

LEAST_HALF = 1e-2
"""A level whose largest magnitude is below this is kept in float32: float16 has all its digits only
above 6e-5."""


@dataclass(frozen=True)
class Level:
    """One map of the encoder, over the whole field of view."""

    values: np.ndarray
    """(C, x, y, z) float16 or float32; voxel i covers points [i factor, (i + 1) factor) of the
    lattice, its center is there; the last may reach beyond the lattice."""
    factor: int
    """The largest power of two of the lattice's spacing that is not coarser than the map's own
    voxels along any axis: nothing is lost, and little is stored in vain."""
    mm: float
    """Size of the map's own voxels, along their longest side."""


@dataclass(frozen=True)
class Pyramid:
    """What dense protocols see of one image."""

    lattice: Lattice
    levels: tuple[Level, ...]
    """One per map of the encoder, fine to coarse; none for an encoder without maps."""
    image: np.ndarray
    """(C, *lattice.shape) float32: the image itself, scaled alike for every encoder."""
    forward_voxels: int
    """What the encoder was shown, the overlap of tiles and padding counted."""

    def at(self, index: np.ndarray, levels: Sequence[int] | None = None) -> list[np.ndarray]:
        """Features of points of the lattice, trilinear.

        Args:
            index: (P, 3) in the lattice, also fractions; clamped to it.
            levels: which; None: all.

        Returns:
            Per level (P, C) float32.
        """
        chosen = self.levels if levels is None else [self.levels[i] for i in levels]
        return [_points(level.values, (index + 0.5) / level.factor - 0.5) for level in chosen]

    def full(self, level: int) -> np.ndarray:
        """(C, *lattice.shape) float32: a level at every point of the lattice, trilinear.

        Wide levels are large there: project them first and use ``spread``.
        """
        chosen = self.levels[level]
        return spread(chosen.values, chosen.factor, self.lattice.shape)


def spread(values: np.ndarray, factor: int, shape: Shape) -> np.ndarray:
    """Bring values (C, x, y, z) of a level of that factor to a lattice of that shape, trilinear.

    Returns:
        (C, *shape) float32.
    """
    from . import interpolation

    if factor == 1:
        return np.asarray(values, np.float32)
    x, y, z = (
        interpolation.Samples.at((np.arange(n) + 0.5) / factor - 0.5, m)
        for n, m in zip(shape, values.shape[1:], strict=True)
    )
    out = np.empty((len(values), *shape), np.float32)
    for channel, of in zip(values, out, strict=True):
        of[:] = interpolation.trilinear(np.asarray(channel, np.float32), x, y, z)
    return out


def _points(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values (C, x, y, z) at (P, 3) coordinates, clamped to the outermost voxels: (P, C)."""
    from . import interpolation

    axes = [interpolation.Samples.at(where[:, a], n) for a, n in enumerate(values.shape[1:])]
    flat = values.reshape(len(values), -1)
    out = np.zeros((len(where), len(values)), np.float32)
    _, m, n = values.shape[1:]
    for corner in np.ndindex(2, 2, 2):
        i, j, k = (s.upper if up else s.lower for s, up in zip(axes, corner, strict=True))
        share = np.ones(len(where), np.float32)
        for s, up in zip(axes, corner, strict=True):
            share *= s.weight if up else 1 - s.weight
        out += share[:, None] * flat[:, (i * m + j) * n + k].T
    return out


def pyramid(
    volume: Volume,
    encoder: FrozenEncoder,
    card: TaskCard,
    device: str = "cpu",
    check: bool = False,
) -> Pyramid:
    """Run an encoder over an image and bring its maps to the task's lattice.

    Args:
        volume: the image.
        encoder: on its device; one that describes a region gets a mask of zeros.
        card: of the task.
        device: "cpu" or "cuda[:i]".
        check: whether a tile's maps depend on its neighbours in the batch; once is enough.

    Raises:
        EncoderError: other maps than its card promises, NaN, maps that depend on the batch, more
            voxels than the task allows, or an encoder that does not take the image's unit.
        ProbeError: the task states no lattice.
        VolumeError: channels that the encoder cannot take, axes not in RAS+ order, or too large.
    """
    lattice = lattice_of(volume.voxels.shape[1:], volume.affine, card)
    image = _image(volume, lattice)
    if not encoder.card.strides:
        return Pyramid(lattice, (), image, 0)
    shown = show(volume, encoder.card, card.field_of_view_mm, lattice.spacing)
    voxels = len(shown.layout.corners) * int(np.prod(encoder.card.grid.shape))
    check_forward_voxels(voxels, encoder.card.name, card)
    if check:
        check_alone(encoder, shown, device)
    blends = blended(encoder, shown, lattice, device)
    levels = tuple(Level(_narrow(b.total), b.factor, b.mm) for b in blends)
    return Pyramid(lattice, levels, image, voxels)


def _image(volume: Volume, lattice: Lattice) -> np.ndarray:
    """(C, *lattice.shape) float32, after ``IMAGE``."""
    from . import interpolation

    image = np.empty((len(volume.voxels), *lattice.shape), np.float32)
    for channel, voxels in zip(image, volume.voxels, strict=True):
        samples = [
            interpolation.Samples.at(p, n)
            for p, n in zip(lattice.positions, voxels.shape, strict=True)
        ]
        channel[:] = interpolation.trilinear(voxels, *samples)
        interpolation.ramp(channel.reshape(-1), *intensity.fit(IMAGE[volume.unit], channel))
    return image


def check_forward_voxels(voxels: int, name: str, card: TaskCard) -> None:
    """Refuse an encoder that is shown more of one scan than the task allows.

    Raises:
        EncoderError: it is.
    """
    if card.forward_voxels is not None and voxels > card.forward_voxels:
        raise EncoderError(
            f"Encoder '{name}' would be shown {voxels:,} voxels of one scan, in overlapping tiles; "
            f"task '{card.name}' allows {card.forward_voxels:,}. Use a coarser spacing, a larger "
            "grid with less padding, or less overlap on the encoder's card."
        )


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same in float16 where that keeps it."""
    size = max(float(values.max()), -float(values.min()))
    return values.astype(np.float16) if size == 0 or LEAST_HALF <= size <= LARGEST_HALF else values
