"""Which part of a label map each of two views shows, and how the second is turned.

Where both views show the same voxels at the same places, the place of a voxel tells its label, and
a network that sees the border of its tile learns that first. Two cubes of one map, of which the
second is turned, agree on what is shown and not on where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...benchmark.types import Shape


@dataclass(frozen=True)
class Shown:
    """Two boxes of one size, and a symmetry of the cube for the second."""

    size: Shape
    starts: tuple[tuple[int, ...], tuple[int, ...]]
    """First voxels of the boxes."""
    order: tuple[int, ...] = (0, 1, 2)
    """The axes of the map that become X, Y and Z of the second view."""
    flips: tuple[int, ...] = ()
    """Axes of the second view that are mirrored after that."""

    @classmethod
    def whole(cls, grid: Shape) -> Shown:
        """All of the map in both views."""
        return cls(grid, ((0, 0, 0), (0, 0, 0)))

    @classmethod
    def drawn(cls, grid: Shape, side: int, step: int) -> Shown:
        """Two cubes and one of the 48 symmetries, by torch's generator.

        Args:
            grid: of the label map.
            side: of the cubes, more than half of that of the grid: all cubes share a part.
            step: which divides the starts: the coarsest stride, so that coarse maps fit as well.
        """
        first, second = (
            tuple(step * int(torch.randint((n - side) // step + 1, ())) for n in grid)
            for _ in range(2)
        )
        flips = tuple(axis for axis in range(3) if torch.rand(()) < 0.5)
        order = tuple(torch.randperm(3).tolist())
        return cls((side, side, side), (first, second), order, flips)

    def images(self, views: Tensor) -> Tensor:
        """What the network sees of views (B, 2, C, X, Y, Z) of the map: (2 B, C, *size)."""
        first, second = (
            _box(view, start, self.size)
            for view, start in zip(views.unbind(1), self.starts, strict=True)
        )
        turned = second.permute(0, 1, *(axis + 2 for axis in self.order)).flip(self._flipped)
        return torch.stack([first, turned], 1).flatten(0, 1)

    def shared(self, maps: Tensor) -> Tensor:
        """The voxels that both views show, as they lie in the label map.

        Args:
            maps: (2 B, C, x, y, z) of `images`, whose stride divides ``step``.

        Returns:
            (2 B, C, a, b, c), fewer voxels along the axes where the boxes differ.
        """
        first, second = maps.unflatten(0, (-1, 2)).unbind(1)
        back = [self.order.index(axis) + 2 for axis in range(3)]
        straight = second.flip(self._flipped).permute(0, 1, *back)
        stride = self.size[0] // first.shape[2]
        low, size = self._common
        parts = [
            _box(
                one,
                [(a - b) // stride for a, b in zip(low, start, strict=True)],
                [n // stride for n in size],
            )
            for one, start in zip((first, straight), self.starts, strict=True)
        ]
        return torch.stack(parts, 1).flatten(0, 1)

    def shared_labels(self, labels: Tensor) -> Tensor:
        """Labels (B, X, Y, Z) of the map -> (B, a, b, c) of the voxels that both views show."""
        return _box(labels, *self._common)

    @property
    def _common(self) -> tuple[list[int], list[int]]:
        """First voxel and size of the part that both boxes hold."""
        low = [max(pair) for pair in zip(*self.starts, strict=True)]
        high = [min(p) + n for p, n in zip(zip(*self.starts, strict=True), self.size, strict=True)]
        return low, [b - a for a, b in zip(low, high, strict=True)]

    @property
    def _flipped(self) -> list[int]:
        """Of (B, C, X, Y, Z)."""
        return [axis + 2 for axis in self.flips]


def _box(images: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """A box of the last three axes."""
    x, y, z = (slice(a, a + n) for a, n in zip(start, size, strict=True))
    return images[..., x, y, z]
