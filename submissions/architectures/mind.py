"""The floor of registration: MIND-SSC, a descriptor of local structure that contrast leaves alone.

Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using
self-similarities, MICCAI 2013, LNCS 8149, 187; the six neighbours of a voxel are compared with
each other, patch by patch: 12 pairs that are neighbours themselves. The distances are scaled by
their mean, which stands for the local noise, and turned into similarities in (0, 1]. So bright on
dark and dark on bright look alike, CT and MR of one edge nearly so. Hand-made, nothing learned.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from ...benchmark.types import Shape
from ._stages import chosen
from ._statistics import moments

VERSION = 1
SUMMARY = "MIND-SSC: 12 self-similarities of the neighbourhood of each voxel; no parameters."
READOUTS = ("moments", "mean")
DENSE = "for protocols on maps"

SIX = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
PAIRS = tuple(
    (a, b)
    for a, b in itertools.combinations(SIX, 2)
    if all(x * y == 0 for x, y in zip(a, b, strict=True))
)
"""The 12 pairs of the six neighbours that are sqrt(2) apart, not opposite."""

LEAST_NOISE, MOST_NOISE = 1e-3, 1e3
"""Limits of the local noise, as shares of its mean over the volume, as in the public code of
ConvexAdam (Siebert et al. 2021): air has next to none, and an artefact has too much."""


class SelfSimilarity(nn.Module):
    """Self-similarity context of each channel."""

    strides = (1,)
    unused: tuple[str, ...] = ()

    def __init__(self, channels: int, readout: str, radius: int, dilation: int) -> None:
        super().__init__()
        self.readout = chosen(readout, READOUTS)
        self.radius, self.dilation = radius, dilation
        self.width = channels * len(PAIRS) * (4 if readout == "moments" else 1)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F): per map its moments, or its mean."""
        batch = x.shape[0]
        values = self.maps(x)[0].flatten(2).flatten(0, 1)  # (B C 12, n)
        found = moments(values) if self.readout == "moments" else values.mean(1, keepdim=True)
        return found.reshape(batch, -1)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> (B, 12 C, X, Y, Z), in (0, 1]."""
        return [torch.cat([self._similarities(x[:, c : c + 1]) for c in range(x.shape[1])], dim=1)]

    def _similarities(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, X, Y, Z) -> (B, 12, X, Y, Z)."""
        reach, size = self.dilation, 2 * self.radius + 1
        padded = functional.pad(x, [reach + self.radius] * 6, mode="replicate")
        shape = [n + 2 * self.radius for n in x.shape[2:]]

        def shifted(offset: tuple[int, int, int]) -> torch.Tensor:
            starts = [reach * (1 + o) for o in offset]
            return padded[(..., *(slice(s, s + n) for s, n in zip(starts, shape, strict=True)))]

        distances = torch.cat(
            [
                functional.avg_pool3d((shifted(a) - shifted(b)).square(), size, stride=1)
                for a, b in PAIRS
            ],
            dim=1,
        )
        distances = distances - distances.amin(1, keepdim=True)
        noise = distances.mean(1, keepdim=True)
        mean = noise.mean((2, 3, 4), keepdim=True)
        noise = torch.maximum(torch.minimum(noise, MOST_NOISE * mean), LEAST_NOISE * mean)
        # where the volume is constant the distances are 0, and so is the quotient
        return torch.exp(-distances / noise.clamp(min=torch.finfo(x.dtype).tiny))


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    radius: Annotated[int, Field(ge=0, le=4)] = 1,
    dilation: Annotated[int, Field(ge=1, le=4)] = 2,
) -> SelfSimilarity:
    """Build the descriptor.

    Args:
        shape: of the grid; any.
        channels: of the grid; each is described alone.
        readout: ``moments`` of each map, or its ``mean``.
        radius: of the patches that are compared, in voxels; 1 and a dilation of 2 are the defaults
            of the public code of ConvexAdam.
        dilation: how far away the neighbours are, in voxels.
    """
    del shape
    return SelfSimilarity(channels, readout, radius, dilation)
