"""What every 2D network shares that answers for volumes: cut, run, average or restack.

Which plane a network sees is the card's to say, because it belongs to how the weights were made:
the architecture's ``axis`` is the axis of the *card's* grid that is cut across, and ``grid.axes``
says what that axis is. On a RAS grid ``axis = 2`` cuts axial slices whose rows run to the right and
whose columns run to the anterior, as an array read from NIfTI has them; ``grid.axes = "PLS"`` gives
the same slices as a reader sees them, with the anterior above and the patient's left at the right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from ...benchmark.errors import ManifestError
from ..slice_adapter import CHUNK, restack, slices

RGB = 3
"""Channels of the images that networks of the natural image literature take."""


class Slicewise(ABC):
    """Mixed into a 2D network: ``embed`` and ``maps`` of volumes from those of slices."""

    axis: int
    """Of the grid, across which slices are cut."""
    strides: tuple[int, ...]
    """Of the maps, in pixels; each divides the last."""

    @abstractmethod
    def read(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, F)."""

    @abstractmethod
    def planes(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, C, h, w) -> one (N, C_i, h_i, w_i) per stride, fine to coarse."""

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F): each slice is read out alone, then slices are averaged."""
        found = [self.read(part) for part in slices(x, self.axis).split(CHUNK)]
        return torch.cat(found).unflatten(0, (x.shape[0], -1)).mean(1)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> maps (B, C_i, x, y, z) at `strides`, slices in their order.

        Each chunk is averaged between slices at once: the maps of all slices, up to the coarsest
        stride times as large as the answer, never exist together.
        """
        coarsest = self.strides[-1]
        chunk = max(CHUNK // coarsest, 1) * coarsest  # no group of slices is torn
        return [torch.cat(stage) for stage in zip(*(self._one(v, chunk) for v in x), strict=True)]

    def _one(self, volume: torch.Tensor, chunk: int) -> list[torch.Tensor]:
        """(C, X, Y, Z) -> the maps of one volume, (1, C_i, x, y, z)."""
        parts = [
            [
                restack(plane, 1, self.axis, stride)
                for plane, stride in zip(self.planes(images), self.strides, strict=True)
            ]
            for images in slices(volume[None], self.axis).split(chunk)
        ]
        return [torch.cat(stage, dim=2 + self.axis) for stage in zip(*parts, strict=True)]


def check_channels(channels: int) -> None:
    """Refuse what `rgb` cannot turn into three channels.

    Raises:
        ManifestError: neither one channel nor three.
    """
    if channels not in (1, RGB):
        raise ManifestError(
            f"channels: this network takes images of {RGB} channels: one grey channel, which is "
            f"repeated, or {RGB}; the card has {channels}, a region's mask included. Use 1 or "
            f"{RGB}, without a region."
        )


def rgb(images: torch.Tensor) -> torch.Tensor:
    """(N, 1 or 3, h, w) -> (N, 3, h, w), grey repeated."""
    return images.expand(-1, RGB, -1, -1)
