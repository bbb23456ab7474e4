"""The floor of floors: an encoder that says the same of every image.

With it a registration leaves the images where they are, a classifier answers with the shares of
the classes, a ranking is a toss. What scores no better has used nothing of the image.
"""

from __future__ import annotations

import torch
from torch import nn

from ...benchmark.types import Shape
from ._stages import chosen

VERSION = 1
SUMMARY = "One number, the same for every volume and voxel; no parameters."
READOUTS = ("one",)
DENSE = "for protocols on maps"
BLIND = True
"""Its features do not tell volumes apart, on purpose."""


class Nothing(nn.Module):
    """1, whatever is shown."""

    strides = (1,)
    width = 1
    unused: tuple[str, ...] = ()

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, 1)."""
        return torch.ones((x.shape[0], 1), dtype=x.dtype, device=x.device)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> (B, 1, X, Y, Z)."""
        return [torch.ones_like(x[:, :1])]


def build(*, shape: Shape, channels: int, readout: str) -> Nothing:
    """Build it.

    Args:
        shape: of the grid; any.
        channels: of the grid; any.
        readout: ``one``.
    """
    del shape, channels
    chosen(readout, READOUTS)
    return Nothing()
