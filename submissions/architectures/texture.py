"""A stronger floor: what edges and blobs of every size look like, wherever they are.

A Gaussian pyramid; on each of its levels the intensity, the magnitude of the gradient and the
Laplacian; of each the moments, quantiles and a histogram over the whole volume. Hand-made, with
nothing learned: a pretrained network that does not beat it has learned no shape.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from ._stages import chosen
from ._statistics import histogram, moments, quantiles

VERSION = 1
SUMMARY = "Multi-scale statistics of intensity, gradient magnitude and Laplacian; no parameters."
READOUTS = ("all", "moments")

LEVELS = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
"""Quantiles. The tails are dense because a lesion is a small share of the voxels: a ball of 12 mm
is 0.1 % of a head."""

BINS = 16
GRADIENT_RANGE = (0.0, 0.5)
LAPLACIAN_RANGE = (-1.0, 1.0)
"""Of the histograms, in units of an image in [0, 1]: a step from 0 to 1 has a central difference of
0.5, and a single bright voxel a Laplacian of -6, beyond the last bin."""

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""Burt and Adelson's generating kernel (IEEE Trans. Commun. 31, 1983): smooth, then drop every
second sample."""


class TextureStatistics(nn.Module):
    """Statistics of a Gaussian pyramid of each channel."""

    unused: tuple[str, ...] = ()

    def __init__(self, channels: int, readout: str, scales: int) -> None:
        super().__init__()
        self.readout = chosen(readout, READOUTS)
        self.strides = tuple(2**level for level in range(scales))
        each = 3 * 4 if readout == "moments" else 3 * (4 + len(LEVELS)) + 2 * BINS
        self.width = channels * scales * each

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F): channels, then scales, then measures."""
        batch, channels = x.shape[:2]
        parts: list[torch.Tensor] = []
        for level in self.maps(x):
            rows = level.reshape(batch * channels, 3, -1)  # (B C, 3, n)
            for measure, bounds in zip(
                rows.unbind(1), (None, GRADIENT_RANGE, LAPLACIAN_RANGE), strict=True
            ):
                parts.append(moments(measure))
                if self.readout == "all":
                    parts.append(quantiles(measure.sort(dim=1).values, LEVELS))
                    if bounds is not None:
                        parts.append(histogram(measure, *bounds, BINS))
        return torch.cat(parts, dim=1).reshape(batch, -1)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Per level (B, 3 C, x, y, z): intensity, gradient magnitude, Laplacian of each channel."""
        levels: list[torch.Tensor] = []
        for stride in self.strides:
            if stride > 1:
                x = _reduce(x)
            levels.append(torch.stack([x, *_derivatives(x)], dim=2).flatten(1, 2))
        return levels


def _reduce(x: torch.Tensor) -> torch.Tensor:
    """Smooth along each axis and keep every second voxel: shape divided by 2, rounded up."""
    kernel = torch.tensor(_BINOMIAL, dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    for axis in range(3):
        size = [1, 1, 1]
        size[axis] = 5
        stride = [1, 1, 1]
        stride[axis] = 2
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = 2
        weight = kernel.view(1, 1, *size).expand(channels, 1, *size)
        padded = functional.pad(x, padding, mode="replicate")
        x = functional.conv3d(padded, weight, stride=tuple(stride), groups=channels)
    return x


def _derivatives(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient magnitude by central differences, and the 7-point Laplacian, both per voxel."""
    squared = torch.zeros_like(x)
    laplacian = torch.zeros_like(x)
    padded = functional.pad(x, (1, 1, 1, 1, 1, 1), mode="replicate")
    inner = [slice(1, -1)] * 3
    for axis in range(3):
        ahead, behind = list(inner), list(inner)
        ahead[axis], behind[axis] = slice(2, None), slice(None, -2)
        right, left = padded[(..., *ahead)], padded[(..., *behind)]
        squared += ((right - left) / 2).square()
        laplacian += right + left - 2 * x
    return squared.sqrt(), laplacian


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    scales: Annotated[int, Field(ge=1, le=6)] = 4,
) -> TextureStatistics:
    """Build the statistics.

    Args:
        shape: of the grid.
        channels: of the grid; each is described alone.
        readout: ``all``, or the ``moments`` alone, without quantiles and histograms.
        scales: levels of the pyramid, at strides 1, 2, 4, ...

    Raises:
        ManifestError: a grid too small for that many scales, or an unknown readout.
    """
    if min(shape) < 2**scales:
        raise ManifestError(
            f"arguments.scales: {scales} scales need at least {2**scales} voxels along each axis, "
            f"the grid has {shape}. Use fewer scales or a larger grid."
        )
    return TextureStatistics(channels, readout, scales)
