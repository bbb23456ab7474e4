"""The floor: how bright, how large. A model that does not beat it has seen no structure.

The histogram of all voxels, the size of the foreground, and moments and quantiles of all voxels
and of the foreground alone. Nothing here depends on where a voxel is.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from ._stages import chosen
from ._statistics import histogram, moments, quantiles

VERSION = 1
SUMMARY = "Histogram, foreground size, moments and quantiles of the intensities; no parameters."
READOUTS = ("all", "histogram", "size")

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles: median, quartiles, and ends that a few bright voxels do not move."""


class IntensityStatistics(nn.Module):
    """Statistics of the voxels of each channel."""

    strides = (1,)
    unused: tuple[str, ...] = ()

    def __init__(self, channels: int, readout: str, low: float, high: float, bins: int) -> None:
        super().__init__()
        self.readout = chosen(readout, READOUTS)
        self.low, self.high, self.bins = low, high, bins
        n = {"histogram": bins, "size": 2, "all": bins + 2 + 2 * (4 + len(LEVELS))}
        self.width = channels * n[readout]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F): per channel histogram, size, moments, quantiles."""
        batch = x.shape[0]
        values = x.flatten(2).flatten(0, 1)  # (B C, n)
        if self.readout == "histogram":
            return histogram(values, self.low, self.high, self.bins).reshape(batch, -1)
        # Foreground in two ways: above the range's end (air, or the outside of a mask, lies on
        # it), and above the mean, which holds where the background is noise.
        inside = (values > self.low).to(values.dtype)
        bright = values > values.mean(1, keepdim=True)
        size = torch.stack([inside.mean(1), bright.to(values.dtype).mean(1)], dim=1)
        if self.readout == "size":
            return size.reshape(batch, -1)
        ordered = values.sort(dim=1).values
        n = ordered.shape[1]
        # A constant volume has no foreground: then its last voxel stands for it.
        start = (n - bright.sum(1)).clamp(max=n - 1)
        parts = [
            histogram(values, self.low, self.high, self.bins),
            size,
            moments(values),
            quantiles(ordered, LEVELS),
            moments(values, bright),
            quantiles(ordered, LEVELS, start),
        ]
        return torch.cat(parts, dim=1).reshape(batch, -1)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The image itself, (B, C, X, Y, Z): the floor of every dense protocol."""
        return [x]


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    low: float = 0.0,
    high: float = 1.0,
    bins: Annotated[int, Field(ge=2, le=256)] = 32,
) -> IntensityStatistics:
    """Build the statistics.

    Args:
        shape: of the grid; any.
        channels: of the grid; each is described alone.
        readout: ``all``, the ``histogram`` alone, or the ``size`` of the foreground alone.
        low: lower end of the range onto which the card's intensity transforms map.
        high: upper end.
        bins: of the histogram.

    Raises:
        ManifestError: an empty range or an unknown readout.
    """
    del shape
    if low >= high:
        raise ManifestError(f"arguments.low ({low}) has to be below arguments.high ({high}).")
    return IntensityStatistics(channels, readout, low, high, bins)
