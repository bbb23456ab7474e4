"""The encoder of MONAI's SegResNet (Myronenko, arXiv 1810.11654).

A state dict of ``monai.networks.nets.SegResNet`` loads as it is; its decoder is left out.
"""

from __future__ import annotations

from typing import Annotated

import torch
from monai.networks.nets.segresnet import SegResNet
from pydantic import Field

from ...benchmark.types import Shape
from . import _stages

VERSION = 1
SUMMARY = "Encoder of MONAI's SegResNet; maps at strides 1, 2, 4, ..."
READOUTS = _stages.READOUTS


class SegResNetEncoder(SegResNet):
    """A SegResNet without its decoder."""

    unused = (r"up_layers\.", r"up_samples\.", r"conv_final\.")

    def __init__(
        self, channels: int, readout: str, init_filters: int, blocks_down: tuple[int, ...]
    ) -> None:
        # The decoder mirrors the encoder's depth; it is built by MONAI and dropped here.
        super().__init__(
            spatial_dims=3,
            init_filters=init_filters,
            in_channels=channels,
            blocks_down=blocks_down,
            blocks_up=(1,) * (len(blocks_down) - 1),
        )
        del self.up_layers, self.up_samples, self.conv_final
        self.readout = _stages.chosen(readout, READOUTS)
        self.strides = tuple(2**stage for stage in range(len(blocks_down)))
        self.width = _stages.width([init_filters * s for s in self.strides], readout)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> one map per stage: f channels at stride 1, 2 f at stride 2, ..."""
        return self.encode(x)[1]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F)."""
        return _stages.pooled(self.maps(x), self.readout)


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    init_filters: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 8,
    blocks_down: Annotated[
        tuple[Annotated[int, Field(ge=1, le=32)], ...], Field(min_length=2, max_length=6)
    ] = (1, 2, 2, 4),
) -> SegResNetEncoder:
    """Build the encoder.

    Args:
        shape: of the grid; any.
        channels: of the grid.
        readout: one of `READOUTS`.
        init_filters: channels of the first stage; a multiple of 8, the groups of its normalisation.
        blocks_down: residual blocks in each stage.

    Raises:
        ManifestError: an unknown readout.
    """
    del shape
    return SegResNetEncoder(channels, readout, init_filters, blocks_down)
