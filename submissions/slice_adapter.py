"""The adapter for 2D networks: slices out of volumes, and what a network made of them back.

For a network of one's own, in a file of one's own (``--encoder my_file:build``)::

    def build():
        return SliceEncoder(my_network, card, axis=2)
"""

from __future__ import annotations

import torch
from torch import nn

from ..benchmark.types import EncoderCard

CHUNK = 64
"""Slices that go through a 2D network at once: bounds its memory whatever the volume's length."""


def slices(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Cut volumes (B, C, X, Y, Z) along an axis: (B n, C, h, w), volume by volume.

    The two axes that remain keep their order.
    """
    return x.movedim(2 + axis, 1).flatten(0, 1)


def restack(maps: torch.Tensor, batch: int, axis: int, stride: int) -> torch.Tensor:
    """Put maps (B n, C, h, w) of slices back into volumes, isotropic in the grid's voxels.

    Between slices the maps are averaged over ``stride`` neighbours, so that the stride is the same
    along all axes; the last group may be shorter.

    Returns:
        (B, C, x, y, z).
    """
    stacked = maps.unflatten(0, (batch, -1)).transpose(1, 2)  # (B, C, n, h, w)
    if stride > 1:
        # Not avg_pool3d: it refuses a volume of fewer slices than the stride.
        stacked = torch.stack([group.mean(2) for group in stacked.split(stride, dim=2)], dim=2)
    return stacked.movedim(2, 2 + axis)


class SliceEncoder(nn.Module):
    """Any 2D network as an encoder of volumes: the mean of its embeddings over the slices."""

    def __init__(self, network: nn.Module, card: EncoderCard, axis: int = 2) -> None:
        """Wrap a network.

        Args:
            network: (N, C, h, w) -> (N, F).
            card: of the encoder; ``channels`` is C and ``width`` is F.
            axis: of the grid, across which slices are cut; 2 is axial on a RAS grid.
        """
        super().__init__()
        self.network = network
        self.card = card
        self.axis = axis

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F)."""
        cut = slices(x, self.axis)
        # A graph in which the number of volumes is open cannot hold a loop over it.
        parts = (cut,) if torch.compiler.is_compiling() else cut.split(CHUNK)
        read = [self.network(part) for part in parts]
        return torch.cat(read).unflatten(0, (x.shape[0], -1)).mean(1)
