"""``Volume`` -> the array a model wants, and where each of its voxels lies in the patient.

The geometry, one rule for every encoder, image and mask:
    1. Axes: everything stays along the image's own axes, which are the nearest to RAS+. An oblique
       image is not rotated, so the map from an index of the output to a voxel is separable.
    2. Field of view: the task's central box in mm, as far as the image reaches. What lies beyond
       the image is padding (step 5), not data: it makes no tile and enters no statistic.
    3. Output size along an axis: max(1, round(box / spacing)), halves up; without a task's field
       of view that is round(n * s_in / s_out).
    4. Anchor: the center of the lattice is the center of the image. Trilinear (masks: nearest,
       halves up); a sample between the outermost voxel center and the edge of the image takes the
       value of that voxel. No low-pass filter before downsampling: MONAI's and nnU-Net's
       resampling has none by default, and a model should meet what it was trained on.
    5. Model's shape: center crop or padding, where an odd voxel is cut or added at the far end;
       or overlapping tiles, as few as keep the card's overlap, equally spaced to a voxel, the
       first and last flush with the lattice.
    6. Axis codes: transposition and flips. ``Grid.shape`` and ``Grid.spacing`` are in the model's
       axis order, all else here is in RAS+ order.

Intensity is fitted per channel to the whole lattice of step 3, so that all tiles share one scale;
padding gets the least value of the transform, which is background. An image of one channel is
repeated for a model that wants several.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import intensity
from .errors import EncoderError, VolumeError
from .nifti import check_count
from .types import EncoderCard, Grid, Shape, Triple, Volume, Window

Axes = tuple[tuple[int, int, int], tuple[bool, bool, bool]]
"""For each axis of the model: the RAS+ axis that it is, and whether it runs against it."""


@dataclass(frozen=True)
class Layout:
    """Where the samples of a model's array lie in an image: pure geometry, no voxels."""

    positions: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Per axis, the image's voxel coordinates of the lattice, float64, ascending."""
    affine: np.ndarray
    """(4, 4) float64: index of the lattice to scanner mm."""
    tile: Shape
    """Voxels of a tile."""
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """First lattice index of the tiles along each axis; negative where there is padding."""
    axes: Axes

    @property
    def shape(self) -> Shape:
        """Voxels of the lattice."""
        x, y, z = (len(p) for p in self.positions)
        return (x, y, z)

    @property
    def corners(self) -> list[Shape]:
        """First lattice index of each tile, in the order of the tiles: the last axis fastest."""
        return list(itertools.product(*self.starts))

    @property
    def affines(self) -> np.ndarray:
        """(T, 4, 4) float64: index in each tile, in the model's axis order, to scanner mm."""
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for axis, (source, against) in enumerate(zip(*self.axes, strict=True)):
            turn[source, axis] = -1 if against else 1
            turn[source, 3] = self.tile[source] - 1 if against else 0
        shift = np.tile(np.eye(4), (len(self.corners), 1, 1))
        shift[:, :3, 3] = self.corners
        return self.affine @ shift @ turn

    def trimmed(self) -> "Layout":
        """The same tiles on only the part of the lattice that they reach."""
        parts = [
            slice(max(0, s[0]), min(n, s[-1] + t))
            for s, n, t in zip(self.starts, self.shape, self.tile, strict=True)
        ]
        shift = np.eye(4)
        shift[:3, 3] = [part.start for part in parts]
        x, y, z = (p[part] for p, part in zip(self.positions, parts, strict=True))
        a, b, c = (
            tuple(i - part.start for i in s) for s, part in zip(self.starts, parts, strict=True)
        )
        return replace(self, positions=(x, y, z), affine=self.affine @ shift, starts=(a, b, c))

    def cut(self, lattice: np.ndarray, corner: Shape, fill: float) -> np.ndarray:
        """One tile of values (X, Y, Z) on the lattice, padded, in the model's axis order."""
        tile = np.full(self.tile, fill, lattice.dtype)
        parts = [
            slice(max(0, c), min(n, c + t))
            for c, n, t in zip(corner, self.shape, self.tile, strict=True)
        ]
        inside = tuple(slice(p.start - c, p.stop - c) for p, c in zip(parts, corner, strict=True))
        tile[inside] = lattice[tuple(parts)]
        order, against = self.axes
        return tile.transpose(order)[tuple(slice(None, None, -1 if a else 1) for a in against)]


def to_tiles(
    volume: Volume, card: EncoderCard, field_of_view_mm: Triple | None = None
) -> np.ndarray:
    """What a model sees of an image.

    Returns:
        (T, C, X, Y, Z) float32, contiguous, in the model's axis order; T is 1 for ``crop``.

    Raises:
        EncoderError: a grid, overlap or intensity on the card that makes no sense, or a card that
            does not accept the volume's unit.
        VolumeError: channels that the model cannot take, axes not in RAS+ order, or a result that
            is too large.
    """
    from . import interpolation

    how = intensity.transform(card, volume.unit)
    channels, *shape = volume.voxels.shape
    if channels not in (1, card.channels):
        raise VolumeError(
            f"The volume has {channels} channels and encoder '{card.name}' takes {card.channels}. "
            "One channel, which is repeated, or as many as the encoder takes are expected."
        )
    layout = plan(shape, volume.affine, card, field_of_view_mm)
    if isinstance(how, Window):  # needs no statistics, hence only the voxels of the tiles
        layout = layout.trimmed()
    samples = [interpolation.Samples.at(p, n) for p, n in zip(layout.positions, shape, strict=True)]
    tiles = np.empty((len(layout.corners), card.channels, *card.grid.shape), np.float32)
    for channel, voxels in enumerate(volume.voxels):
        lattice = interpolation.trilinear(voxels, *samples)
        ramp = intensity.fit(how, lattice)
        for tile, corner in zip(tiles[:, channel], layout.corners, strict=True):
            tile[:] = layout.cut(lattice, corner, ramp.low)
            interpolation.ramp(tile.reshape(-1), *ramp)
    tiles[:, channels:] = tiles[:, :1]
    return tiles


def mask_to_grid(
    mask: np.ndarray,
    affine: np.ndarray,
    card: EncoderCard,
    field_of_view_mm: Triple | None = None,
) -> np.ndarray:
    """The mask of an image on the samples of ``to_tiles``, nearest neighbor.

    Args:
        mask: (X, Y, Z) integers on the voxels of the image.
        affine: of the mask, as ``read_mask`` gives it.
        card: of the encoder.
        field_of_view_mm: of the task.

    Returns:
        (T, X, Y, Z), the mask's dtype, 0 in the padding.
    """
    layout = plan(mask.shape, affine, card, field_of_view_mm).trimmed()
    nearest = [
        np.clip(np.floor(p + 0.5), 0, n - 1).astype(np.int64)
        for p, n in zip(layout.positions, mask.shape, strict=True)
    ]
    lattice = mask[np.ix_(*nearest)]
    return np.stack([layout.cut(lattice, corner, 0) for corner in layout.corners])


def tile_count(
    shape: Sequence[int],
    affine: np.ndarray,
    card: EncoderCard,
    field_of_view_mm: Triple | None = None,
) -> int:
    """How many tiles ``to_tiles`` makes of an image of this shape (X, Y, Z), reading no voxel."""
    return len(plan(shape, affine, card, field_of_view_mm).corners)


def resample(
    volume: Volume, spacing: Triple, shape: Shape | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Resample along the image's own axes, by the rules 3 and 4 above; intensities stay.

    Args:
        volume: any unit.
        spacing: mm along X, Y, Z of the result.
        shape: voxels of the result, around the image's center; None covers the image. Samples
            beyond the image take the nearest voxel's value.

    Returns:
        (C, X, Y, Z) float32 and its affine (4, 4).
    """
    from . import interpolation

    before = volume.voxels.shape[1:]
    size = shape or _size(_extent(before, volume.affine), spacing)
    positions, affine = _lattice(before, volume.affine, spacing, size)
    samples = [interpolation.Samples.at(p, n) for p, n in zip(positions, before, strict=True)]
    voxels = [interpolation.trilinear(channel, *samples) for channel in volume.voxels]
    return np.stack(voxels), affine


def lattice(
    shape: Sequence[int], affine: np.ndarray, spacing: Triple, field_of_view_mm: Triple | None
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, Triple]:
    """The lattice of rules 2 to 4 above, for any spacing, along the image's own axes.

    Args:
        shape: voxels of the image, X, Y, Z.
        affine: of the image.
        spacing: mm along X, Y, Z.
        field_of_view_mm: of the task.

    Returns:
        Per axis the image's voxel coordinates; the affine (4, 4) from an index of the lattice to
        scanner mm; and the box, mm, that is looked at.

    Raises:
        VolumeError: the image is not in RAS+ order, or the result would be too large.
    """
    _check_canonical(affine)
    extent = _extent(shape, affine)
    box = _triple([min(e, f) for e, f in zip(extent, field_of_view_mm or extent, strict=True)])
    size = _size(box, spacing)
    check_count(math.prod(size), f"The image at {' x '.join(f'{s:g}' for s in spacing)} mm")
    return *_lattice(shape, affine, spacing, size), box


def resolve(grid: Grid, field_of_view_mm: Triple | None, volume: Volume) -> Grid:
    """Give a grid without spacing the isotropic one at which the field of view fits its shape.

    The field of view is the task's or, without one, the volume's own extent.
    """
    return _resolve(grid, field_of_view_mm or _extent(volume.voxels.shape[1:], volume.affine))


def plan(
    shape: Sequence[int],
    affine: np.ndarray,
    card: EncoderCard,
    field_of_view_mm: Triple | None = None,
) -> Layout:
    """Lay a model's grid over an image of this shape (X, Y, Z) and affine, reading no voxel.

    Raises:
        EncoderError: the card's grid or overlap makes no sense.
        VolumeError: the image is not in RAS+ order, or the result would be too large.
    """
    order, against = _axes(card.grid)
    if not 0 <= card.overlap < 1:
        raise EncoderError(
            f"Encoder '{card.name}' has overlap {card.overlap:g}; a share of the tile in [0, 1) is "
            "expected. Correct the card."
        )
    _check_canonical(affine)
    extent = _extent(shape, affine)
    grid = _resolve(card.grid, field_of_view_mm or extent)
    assert grid.spacing is not None  # noqa: S101  what _resolve is for
    # from the model's axis order to RAS+
    spacing = _triple([grid.spacing[order.index(axis)] for axis in range(3)])
    a, b, c = (grid.shape[order.index(axis)] for axis in range(3))
    tile = (a, b, c)
    box = _triple([min(e, f) for e, f in zip(extent, field_of_view_mm or extent, strict=True)])
    size = _size(box, spacing)
    x, y, z = (_starts(n, t, card) for n, t in zip(size, tile, strict=True))
    tiles = len(x) * len(y) * len(z) * math.prod(tile)
    mm = " x ".join(f"{s:g}" for s in spacing)
    check_count(max(tiles, math.prod(size)), f"The image at {mm} mm for '{card.name}'")
    positions, lattice = _lattice(shape, affine, spacing, size)
    return Layout(positions, lattice, tile, (x, y, z), (order, against))


def _axes(grid: Grid) -> Axes:
    """Check a grid and read its axis codes."""
    pairs = ("RL", "AP", "SI")
    found = [next((i for i, pair in enumerate(pairs) if code in pair), -1) for code in grid.axes]
    sound = sorted(found) == [0, 1, 2] and len(grid.shape) == 3 and min(grid.shape) >= 1
    if not (sound and all(math.isfinite(s) and s > 0 for s in grid.spacing or ())):
        raise EncoderError(
            f"{grid} cannot be laid over an image. A positive shape, a positive spacing in mm or "
            "None, and one code of each pair R/L, A/P, S/I are expected: correct the encoder's "
            "card."
        )
    a, b, c = found
    x, y, z = (code in "LPI" for code in grid.axes)
    return (a, b, c), (x, y, z)


def _check_canonical(affine: np.ndarray) -> None:
    """Each axis has to run towards its own side: the rotation's diagonal is positive."""
    u, _, v = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    if not np.all(np.diag(u @ v) > 0):
        raise VolumeError(
            f"The volume's axes {np.round(affine[:3, :3], 3).tolist()} are not in RAS+ order. "
            "Read it with read_nifti, or turn it with to_canonical."
        )


def _resolve(grid: Grid, box: Triple) -> Grid:
    order, _ = _axes(grid)
    if grid.spacing is not None:
        return grid
    mm = max(box[axis] / n for axis, n in zip(order, grid.shape, strict=True))
    return replace(grid, spacing=(mm, mm, mm))


def _extent(shape: Sequence[int], affine: np.ndarray) -> Triple:
    """Length from edge to edge of the image along its axes, mm."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return _triple([n * float(s) for n, s in zip(shape, lengths, strict=True)])


def _size(box: Triple, spacing: Triple) -> Shape:
    x, y, z = (max(1, math.floor(b / s + 0.5)) for b, s in zip(box, spacing, strict=True))
    return (x, y, z)


def _lattice(
    shape: Sequence[int], affine: np.ndarray, spacing: Triple, size: Shape
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Voxel coordinates per axis and affine of a lattice around the image's center."""
    steps = np.asarray(spacing) / np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = (
        (n - 1) / 2 + (np.arange(m) - (m - 1) / 2) * step
        for n, m, step in zip(shape, size, steps, strict=True)
    )
    to_voxel = np.diag([*steps, 1.0])
    to_voxel[:3, 3] = x[0], y[0], z[0]
    return (x, y, z), affine @ to_voxel


def _starts(n: int, tile: int, card: EncoderCard) -> tuple[int, ...]:
    """First index of the tiles along an axis of ``n`` voxels."""
    rest = n - tile
    if rest <= 0 or card.tiling == "crop":
        return (int(rest / 2),)  # towards zero: the odd voxel is cut or added at the far end
    # a whole stride: rounding the starts then never costs overlap. 1e-9: 20 * (1 - 0.9) is 1.99...
    stride = max(1, math.floor(tile * (1 - card.overlap) + 1e-9))
    gaps = math.ceil(rest / stride)
    return tuple((2 * i * rest + gaps) // (2 * gaps) for i in range(gaps + 1))


def _triple(values: Sequence[float]) -> Triple:
    x, y, z = values
    return (x, y, z)
