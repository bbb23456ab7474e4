"""Run an encoder over a whole image in overlapping tiles and blend its maps onto a lattice.

Voxel i of a map covers voxels [i s, (i + 1) s) of its tile, its center is there. A tile's share
falls towards its edges (``_share``) and the shares of all tiles add up to 1 at every point. Tiles,
image and lattice have the same axes up to order and direction, so blending and trilinear
interpolation together are one small matrix per axis, and no more than one batch of tiles and the
accumulators are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import grids, intensity
from .errors import EncoderError, TomoprobeError, VolumeError
from .features import BATCH_TOLERANCE, FrozenEncoder, batch_size, frozen, in_batches
from .lattice import Lattice
from .types import EncoderCard, Triple, Volume

if TYPE_CHECKING:
    import torch

OVERLAP = 0.25
"""Least overlap of neighbouring tiles, as a share of the tile: the default of MONAI's
``sliding_window_inference``; nnU-Net takes 0.5 (Isensee et al. 2021), which costs up to 3 times as
much."""

BATCH_SHARE_CUDA = 8
"""A GPU's batch is this part of what embeddings take: maps are much larger than embeddings."""


class Shown(NamedTuple):
    """The image on the encoder's lattice, before it is cut into tiles."""

    layout: grids.Layout
    values: np.ndarray
    """(C, X, Y, Z) float32, C as the image has them, after the intensity transform."""
    ramps: tuple[intensity.Ramp, ...]
    card: EncoderCard

    def tiles(self, start: int, stop: int) -> np.ndarray:
        """Tiles of that range, as ``to_tiles`` makes them, with zeros for a region."""
        corners = self.layout.corners[start:stop]
        channels = self.card.channels + self.card.region
        out = np.zeros((len(corners), channels, *self.card.grid.shape), np.float32)
        for c in range(self.card.channels):
            at = min(c, len(self.values) - 1)  # a single channel is repeated
            for tile, corner in zip(out[:, c], corners, strict=True):
                tile[:] = self.layout.cut(self.values[at], corner, self.ramps[at].base)
        return out


def show(
    volume: Volume, card: EncoderCard, field_of_view_mm: Triple | None, lattice_mm: Triple
) -> Shown:
    """Bring an image to the encoder's spacing and intensity, as ``grids.to_tiles`` does.

    Args:
        volume: the image.
        card: of the encoder; what it says on tiling is not asked, its overlap is if larger.
        field_of_view_mm: of the task.
        lattice_mm: of the task. An encoder without a spacing of its own is shown the image at this
            one, so that all images of a task are shown alike and no floor is coarser than what it
            is compared on; or finer, where the field of view then still fits its grid.

    Raises:
        EncoderError: see ``to_tiles``; likewise ``VolumeError``.
    """
    from . import interpolation

    how = intensity.transform(card, volume.unit)
    channels, *shape = volume.voxels.shape
    if channels not in (1, card.channels):
        raise VolumeError(
            f"The volume has {channels} channels and encoder '{card.name}' takes {card.channels}. "
            "One channel, which is repeated, or as many as the encoder takes are expected."
        )
    mm = min(lattice_mm)
    if field_of_view_mm is not None:
        mm = min(mm, *(grids.resolve(card.grid, field_of_view_mm, volume).spacing or ()))
    grid = card.grid if card.grid.spacing else replace(card.grid, spacing=(mm, mm, mm))
    everywhere = replace(card, grid=grid, tiling="tiles", overlap=max(card.overlap, OVERLAP))
    layout = grids.plan(shape, volume.affine, everywhere, field_of_view_mm)
    samples = [interpolation.Samples.at(p, n) for p, n in zip(layout.positions, shape, strict=True)]
    values = np.empty((channels, *layout.shape), np.float32)
    ramps = []
    for channel, voxels in zip(values, volume.voxels, strict=True):
        channel[:] = interpolation.trilinear(voxels, *samples)
        ramps.append(intensity.fit(how, channel))
        interpolation.ramp(channel.reshape(-1), *ramps[-1])
    return Shown(layout, values, tuple(ramps), card)


def blended(encoder: FrozenEncoder, shown: Shown, lattice: Lattice, device: str) -> list[Blend]:
    """Run the encoder over all tiles, blending as it goes.

    Returns:
        The filled accumulators, one per map.

    Raises:
        EncoderError: other maps than its card promises, NaN, or buffers that change.
    """
    import torch

    card = encoder.card
    corners = shown.layout.corners
    batch = batch_size(card, device)
    if device.startswith("cuda"):
        batch = max(1, batch // BATCH_SHARE_CUDA)

    def maps(start: int, stop: int) -> list[torch.Tensor]:
        return checked_maps(encoder, torch.from_numpy(shown.tiles(start, stop)).to(device))

    blends: list[Blend] = []
    done = 0
    with torch.inference_mode(), frozen(encoder):
        for found in in_batches(maps, len(corners), batch, card.name, device):
            blends = blends or [
                Blend.of(m, s, shown, lattice) for m, s in zip(found, card.strides, strict=True)
            ]
            tiles = len(found[0])
            for blend in blends:
                blend.add(found.pop(0), done, card.name)  # and let go of it
            done += tiles
    return blends


def check_alone(encoder: FrozenEncoder, shown: Shown, device: str) -> None:
    """A tile's maps must be the same alone and beside a very different neighbour.

    Raises:
        EncoderError: they are not.
    """
    import torch

    with torch.inference_mode():
        x = torch.from_numpy(shown.tiles(0, 1)).to(device)
        turned = x.flip((2, 3, 4))
        image = encoder.card.channels
        other = torch.cat([turned[:, :image] * -0.5 + x[:, :image].mean(), turned[:, image:]], 1)
        for alone, beside in zip(
            checked_maps(encoder, x), checked_maps(encoder, torch.cat([x, other])), strict=True
        ):
            size = float(torch.maximum(alone.abs().max(), beside[0].abs().max()))
            apart = float((alone[0] - beside[0]).abs().max())
            if apart > BATCH_TOLERANCE * size + 1e-12:
                raise EncoderError(
                    f"Maps of encoder '{encoder.card.name}' depend on the batch: those of a tile "
                    f"alone and beside another differ by {apart / size:.2g} of their size (allowed "
                    f"{BATCH_TOLERANCE:g}). Every tile has to be treated by itself: put BatchNorm "
                    "into eval() and remove normalisation over the batch."
                )


def checked_maps(encoder: FrozenEncoder, x: torch.Tensor) -> list[torch.Tensor]:
    """The maps of a batch as float32, checked against the card."""
    import torch

    card = encoder.card
    try:
        found = list(encoder.maps(x))
    except (TomoprobeError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # an encoder's own code can fail in any way
        raise EncoderError(
            f"Encoder '{card.name}' fails to give maps of an array of shape {tuple(x.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if len(found) != len(card.strides):
        raise EncoderError(
            f"Encoder '{card.name}' gives {len(found)} maps, and its card states the strides "
            f"{list(card.strides)}. One map per stride is expected, fine to coarse: correct maps() "
            "or the card."
        )
    for m in found:
        if not isinstance(m, torch.Tensor) or m.ndim != 5 or len(m) != len(x) or m.numel() == 0:
            got = tuple(m.shape) if isinstance(m, torch.Tensor) else type(m).__name__
            raise EncoderError(
                f"Encoder '{card.name}' gives a map {got} for {len(x)} volumes; a tensor "
                f"({len(x)}, C, x, y, z) is expected. Correct maps()."
            )
        if not torch.isfinite(m).all():
            raise EncoderError(
                f"Encoder '{card.name}' returned NaN or infinity in a map. Features have to be "
                "finite: look for a division by a zero SD or an overflow in half precision."
            )
    return [m.float() for m in found]


@dataclass(frozen=True)
class Blend:
    """The accumulator of one level: sums what tiles say, with shares that add up to 1."""

    total: np.ndarray
    """(C, x, y, z) float32."""
    factor: int
    mm: float
    expected: tuple[int, ...]
    """Shape of a tile's map, with its channels."""
    order: tuple[int, ...]
    """For each RAS+ axis, the map's axis."""
    matrices: tuple[list[tuple[int, np.ndarray]], ...]
    """Per RAS+ axis and tile along it: first voxel of the level that the tile reaches, and how
    the level's voxels from there on follow from the map's, (n, m) float32."""

    @classmethod
    def of(cls, m: torch.Tensor, stride: int, shown: Shown, lattice: Lattice) -> Blend:
        """For maps of this shape; ``stride`` as the card states it."""
        layout = shown.layout
        model_axis = tuple(layout.axes[0].index(axis) for axis in range(3))
        sizes = [m.shape[2 + axis] for axis in model_axis]
        # rounded up where the stride does not divide the tile; any other shape spans the tile
        strides = [
            float(stride) if size == -(-tile // stride) else tile / size
            for size, tile in zip(sizes, layout.tile, strict=True)
        ]
        spacing = np.linalg.norm(layout.affine[:3, :3], axis=0)
        mm = spacing * strides
        factor = 1
        while np.all(2 * factor * np.array(lattice.spacing) <= mm * (1 + 1e-6)):
            factor *= 2
        shape = [-(-n // factor) for n in lattice.shape]
        matrices = []
        for axis in range(3):
            points = lattice.positions[axis]
            step = lattice.spacing[axis] / lattice.image_spacing[axis]
            centers = points[0] + (factor * np.arange(shape[axis]) + (factor - 1) / 2) * step
            own = layout.positions[axis]
            # from the image's voxels to those of the encoder's lattice
            where = (centers - own[0]) * (lattice.image_spacing[axis] / spacing[axis])
            against = layout.axes[1][model_axis[axis]]
            matrices.append(
                _matrices(
                    where,
                    layout.starts[axis],
                    layout.tile[axis],
                    sizes[axis],
                    strides[axis],
                    against,
                )
            )
        total = np.zeros((m.shape[1], *shape), np.float32)
        return cls(total, factor, float(mm.max()), tuple(m.shape[1:]), model_axis, tuple(matrices))

    def add(self, maps: torch.Tensor, first: int, name: str) -> None:
        """Add the maps (B, C, ...) of tiles ``first``, ``first + 1``, ... of an encoder."""
        import torch

        if tuple(maps.shape[1:]) != self.expected:
            raise EncoderError(
                f"Encoder '{name}' gives maps of {self.expected} for one tile and of "
                f"{tuple(maps.shape[1:])} for another of the same shape. The shape may depend on "
                "the grid alone: correct maps()."
            )
        counts = [len(of) for of in self.matrices]
        for offset, m in enumerate(maps):
            tile = np.unravel_index(first + offset, counts)
            (i, x), (j, y), (k, z) = (of[at] for of, at in zip(self.matrices, tile, strict=True))
            a, b, c = (torch.from_numpy(w).to(m.device) for w in (x, y, z))
            part = m.permute(0, *(1 + axis for axis in self.order))  # (C, x, y, z), RAS+
            part = part @ c.T
            part = b @ part
            part = torch.einsum("xi,ciyz->cxyz", a, part)
            self.total[:, i : i + len(x), j : j + len(y), k : k + len(z)] += part.cpu().numpy()


def _matrices(
    where: np.ndarray,
    starts: Sequence[int],
    tile: int,
    size: int,
    stride: float,
    against: bool,
) -> list[tuple[int, np.ndarray]]:
    """Per tile along an axis, the points that it reaches and their values as sums of the map's.

    Args:
        where: (n,) ascending: coordinates of the points, in voxels of the encoder's lattice.
        starts: first voxel of each tile.
        tile: voxels of a tile.
        size: voxels of the map.
        stride: voxels of the tile per voxel of the map.
        against: whether the model's axis runs the other way.

    Returns:
        Per tile the first point and (points, size) float32: trilinear weights times the share.
    """
    # a point beyond all tiles, by half a voxel of either lattice, takes what is nearest
    where = np.clip(where, starts[0] - 0.5, starts[-1] + tile - 0.5)
    local = where[:, None] - np.asarray(starts)  # (n, T)
    shares = _share((local + 0.5) / tile)
    shares /= shares.sum(1, keepdims=True)
    out = []
    for at in range(len(starts)):
        reached = np.flatnonzero(shares[:, at])
        if len(reached) == 0:
            out.append((0, np.zeros((0, size), np.float32)))
            continue
        rows = slice(reached[0], reached[-1] + 1)
        in_model = local[rows, at]
        if against:
            in_model = tile - 1 - in_model
        c = np.clip((in_model + 0.5) / stride - 0.5, 0, size - 1)
        hat = np.maximum(0, 1 - np.abs(c[:, None] - np.arange(size)))
        out.append((int(reached[0]), (shares[rows, at, None] * hat).astype(np.float32)))
    return out


def _share(place: np.ndarray) -> np.ndarray:
    """How much a tile says at a place in it, before shares are scaled to add up to 1.

    Hann's window: 1 at the center, falling smoothly to 0 at the edges (kept above 0 there, as
    the outermost tile is alone at its edge). Outside of [0, 1] it is 0.
    """
    inside = (place >= 0) & (place <= 1)
    return np.where(inside, np.maximum(np.sin(np.pi * np.clip(place, 0, 1)) ** 2, 1e-6), 0.0)
