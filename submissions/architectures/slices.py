"""A 2D network on slices: MONAI's 2D ResNet, its embeddings averaged over the slices of a volume.

A state dict of ``monai.networks.nets.ResNet(spatial_dims=2)`` loads as it is.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from monai.networks.nets.resnet import ResNet
from pydantic import Field

from ...benchmark.types import Shape
from . import _stages
from ._slices import Slicewise

VERSION = 1
SUMMARY = "MONAI ResNet, 2D, on the slices along an axis; mean over slices, maps restacked."
READOUTS = _stages.READOUTS

Depth = Annotated[int, Field(ge=1, le=64)]
Width = Annotated[int, Field(ge=1, le=2048)]
Odd = Literal[1, 3, 5, 7, 9, 11]
"""An even kernel would shift the maps by half a pixel."""


class SliceResNet(Slicewise, ResNet):
    """A 2D ResNet that answers for volumes."""

    unused = (r"fc\.",)

    def __init__(
        self,
        channels: int,
        readout: str,
        axis: int,
        layers: tuple[int, int, int, int],
        block_inplanes: tuple[int, int, int, int],
        conv1_t_size: int,
        conv1_t_stride: int,
        no_max_pool: bool,
        bias_downsample: bool,
    ) -> None:
        super().__init__(
            block="basic",
            layers=list(layers),
            block_inplanes=list(block_inplanes),
            spatial_dims=2,
            n_input_channels=channels,
            conv1_t_size=conv1_t_size,
            conv1_t_stride=conv1_t_stride,
            no_max_pool=no_max_pool,
            bias_downsample=bias_downsample,
            feed_forward=False,
        )
        self.readout = _stages.chosen(readout, READOUTS)
        self.axis = axis
        first = conv1_t_stride * (1 if no_max_pool else 2)
        self.strides = tuple(first * 2**stage for stage in range(4))
        self.width = _stages.width(block_inplanes, readout)

    def read(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, F)."""
        return _stages.pooled(self.planes(images), self.readout)

    def planes(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, C, h, w) -> the four stages of the 2D network."""
        x = self.act(self.bn1(self.conv1(images)))
        if not self.no_max_pool:
            x = self.maxpool(x)
        found: list[torch.Tensor] = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            found.append(x)
        return found


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    axis: Literal[0, 1, 2] = 2,
    layers: tuple[Depth, Depth, Depth, Depth] = (2, 2, 2, 2),
    block_inplanes: tuple[Width, Width, Width, Width] = (64, 128, 256, 512),
    conv1_t_size: Odd = 7,
    conv1_t_stride: Annotated[int, Field(ge=1, le=4)] = 1,
    no_max_pool: bool = False,
    bias_downsample: bool = True,
) -> SliceResNet:
    """Build the network.

    Args:
        shape: of the grid; any.
        channels: of the grid.
        readout: one of `READOUTS`, of each slice; the mean over slices is the embedding.
        axis: of the grid, across which slices are cut; 2 is axial on a RAS grid.
        layers: blocks in each stage.
        block_inplanes: width of each stage.
        conv1_t_size: of the first convolution, in pixels.
        conv1_t_stride: of the first convolution.
        no_max_pool: leave out the pooling after the first convolution.
        bias_downsample: whether the convolution of a shortcut has a bias.

    Raises:
        ManifestError: an unknown readout.
    """
    del shape
    return SliceResNet(
        channels,
        readout,
        axis,
        layers,
        block_inplanes,
        conv1_t_size,
        conv1_t_stride,
        no_max_pool,
        bias_downsample,
    )
