"""A stronger floor: what edges and blobs of several sizes look like, wherever they are.

A scale space: the image, the image smoothed, and then a Gaussian pyramid. At each scale the
intensity, the magnitude of the gradient and the Laplacian; of each the moments (on request also
quantiles and a histogram), over the whole volume and over the inside of the foreground, where the
strong edge between body and air does not drown the rest. Hand-made, nothing learned: a pretrained
network that does not beat it has learned no shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, NamedTuple

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
READOUTS = ("moments", "all")

LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Quantiles: median, quartiles and both tails."""

BINS = 16
GRADIENT_RANGE = (0.0, 0.5)
LAPLACIAN_RANGE = (-1.0, 1.0)
"""Of the histograms, in units of an image in [0, 1]: a step from 0 to 1 has a central difference of
0.5, and a single bright voxel a Laplacian of -6, beyond the last bin."""

EROSION = 5
"""Side of the cube by which the foreground is eroded: two voxels, the reach of the smoothing."""

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""Smoothing with an SD of one voxel; then every second sample may be dropped (Burt and Adelson,
IEEE Transactions on Communications 31, 1983)."""


class Scale(NamedTuple):
    """The image at one scale."""

    stride: int
    measures: torch.Tensor
    """(B, C, 3, x, y, z): intensity, gradient magnitude, Laplacian."""
    interior: torch.Tensor
    """(B, C, x, y, z) bool: well inside the foreground."""


class TextureStatistics(nn.Module):
    """Statistics of the scale space of each channel."""

    unused: tuple[str, ...] = ()

    def __init__(self, channels: int, readout: str, scales: int, octaves: int) -> None:
        super().__init__()
        self.readout = chosen(readout, READOUTS)
        self.scales, self.octaves = scales, octaves
        self.strides = tuple(2**octave for octave in range(octaves))
        each = 3 * 2 * 4 + (3 * len(LEVELS) + 2 * BINS if readout == "all" else 0)
        self.width = channels * scales * each

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F): scales, then measures, then statistics, of each channel."""
        parts: list[torch.Tensor] = []
        for scale in islice(_scale_space(x, self.octaves), self.scales):
            inside = scale.interior.flatten(2).flatten(0, 1)  # (B C, n)
            rows = scale.measures.flatten(3).flatten(0, 1)  # (B C, 3, n)
            for measure, bounds in zip(
                rows.unbind(1), (None, GRADIENT_RANGE, LAPLACIAN_RANGE), strict=True
            ):
                parts += [moments(measure), moments(measure, inside)]
                if self.readout == "all":
                    parts.append(quantiles(measure.sort(dim=1).values, LEVELS))
                    if bounds is not None:
                        parts.append(histogram(measure, *bounds, BINS))
        return torch.cat(parts, dim=1).reshape(x.shape[0], -1)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The measures as maps: (B, 6 C, x, y, z) at stride 1, (B, 3 C, x, y, z) at 2, 4, ..."""
        first, smoothed, *rest = [s.measures.flatten(1, 2) for s in _scale_space(x, self.octaves)]
        return [torch.cat([first, smoothed], dim=1), *rest]


def _scale_space(x: torch.Tensor, octaves: int) -> Iterator[Scale]:
    """The image, the image smoothed, and one image per further octave, at strides 2, 4, ..."""
    for octave in range(octaves):
        smooth = _smooth(x)
        inside = smooth > smooth.mean((2, 3, 4), keepdim=True)
        # The least value of a neighbourhood: an erosion.
        eroded = -functional.max_pool3d(-inside.to(x.dtype), EROSION, 1, EROSION // 2) > 0
        yield Scale(2**octave, _measures(x), eroded)
        if octave == 0:
            yield Scale(1, _measures(smooth), eroded)
        x = smooth[..., ::2, ::2, ::2]


def _smooth(x: torch.Tensor) -> torch.Tensor:
    """Binomial smoothing along each axis, the border repeated."""
    channels = x.shape[1]
    kernel = torch.tensor(_BINOMIAL, dtype=x.dtype, device=x.device)
    for axis in range(3):
        size = [1, 1, 1]
        size[axis] = len(_BINOMIAL)
        padding = [0] * 6
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = 2  # last axis first
        weight = kernel.view(1, 1, *size).expand(channels, 1, *size)
        x = functional.conv3d(functional.pad(x, padding, mode="replicate"), weight, groups=channels)
    return x


def _measures(x: torch.Tensor) -> torch.Tensor:
    """Intensity, gradient magnitude by central differences, 7-point Laplacian: (B, C, 3, ...)."""
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
    return torch.stack([x, squared.sqrt(), laplacian], dim=2)


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    scales: Annotated[int, Field(ge=1, le=7)] = 3,
    octaves: Annotated[int, Field(ge=2, le=6)] = 4,
) -> TextureStatistics:
    """Build the statistics.

    Args:
        shape: of the grid.
        channels: of the grid; each is described alone.
        readout: ``moments``, or ``all`` with quantiles and histograms.
        scales: how many go into the embedding: the image, the image smoothed, stride 2, 4, ...
        octaves: how many strides (1, 2, 4, ...) the maps have.

    Raises:
        ManifestError: more scales than the octaves give, a grid too small for that many octaves,
            or an unknown readout.
    """
    if scales > octaves + 1:
        raise ManifestError(
            f"arguments.scales: {octaves} octaves give {octaves + 1} scales, not {scales}. Use "
            "fewer scales or more octaves."
        )
    if min(shape) < 2**octaves:
        raise ManifestError(
            f"arguments.octaves: {octaves} octaves need at least {2**octaves} voxels along each "
            f"axis, the grid has {shape}. Use fewer octaves or a larger grid."
        )
    return TextureStatistics(channels, readout, scales, octaves)
