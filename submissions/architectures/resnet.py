"""MONAI's 3D ResNet (He et al., arXiv 1512.03385; 3D after Hara et al., arXiv 1711.09577).

A state dict of ``monai.networks.nets.ResNet``, which is also MedicalNet's layout, loads as it is;
the classifier ``fc`` is left out. Argument names are MONAI's. Defaults make its ResNet-18.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from monai.networks.nets.resnet import ResNet
from pydantic import Field

from ...benchmark.types import Shape
from . import _stages

VERSION = 1
SUMMARY = "MONAI ResNet, 3D, any depth and width; maps after each of the four stages."
READOUTS = _stages.READOUTS

Depth = Annotated[int, Field(ge=1, le=64)]
Width = Annotated[int, Field(ge=1, le=2048)]
Odd = Literal[1, 3, 5, 7, 9, 11]
"""An even kernel would shift the maps by half a voxel."""

EXPANSION = {"basic": 1, "bottleneck": 4}
"""Channels a block gives per channel of its width."""


class ResNetStages(ResNet):
    """A ResNet that answers with its four stages instead of class scores."""

    unused = (r"fc\.",)

    def __init__(
        self,
        channels: int,
        readout: str,
        block: Literal["basic", "bottleneck"],
        layers: tuple[int, int, int, int],
        block_inplanes: tuple[int, int, int, int],
        conv1_t_size: int,
        conv1_t_stride: int,
        no_max_pool: bool,
        shortcut_type: Literal["A", "B"],
        bias_downsample: bool,
    ) -> None:
        super().__init__(
            block=block,
            layers=list(layers),
            block_inplanes=list(block_inplanes),
            spatial_dims=3,
            n_input_channels=channels,
            conv1_t_size=conv1_t_size,
            conv1_t_stride=conv1_t_stride,
            no_max_pool=no_max_pool,
            shortcut_type=shortcut_type,
            bias_downsample=bias_downsample,
            feed_forward=False,
        )
        self.readout = _stages.chosen(readout, READOUTS)
        first = conv1_t_stride * (1 if no_max_pool else 2)
        self.strides = tuple(first * 2**stage for stage in range(4))
        self.width = _stages.width([w * EXPANSION[block] for w in block_inplanes], readout)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> four maps, e.g. 64, 128, 256 and 512 channels."""
        x = self.act(self.bn1(self.conv1(x)))
        if not self.no_max_pool:
            x = self.maxpool(x)
        found: list[torch.Tensor] = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            found.append(x)
        return found

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F)."""
        return _stages.pooled(self.maps(x), self.readout)


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    block: Literal["basic", "bottleneck"] = "basic",
    layers: tuple[Depth, Depth, Depth, Depth] = (2, 2, 2, 2),
    block_inplanes: tuple[Width, Width, Width, Width] = (64, 128, 256, 512),
    conv1_t_size: Odd = 7,
    conv1_t_stride: Annotated[int, Field(ge=1, le=4)] = 1,
    no_max_pool: bool = False,
    shortcut_type: Literal["A", "B"] = "B",
    bias_downsample: bool = True,
) -> ResNetStages:
    """Build the network.

    Args:
        shape: of the grid; any.
        channels: of the grid.
        readout: one of `READOUTS`.
        block: of two or of three convolutions.
        layers: blocks in each stage.
        block_inplanes: width of each stage.
        conv1_t_size: of the first convolution, in voxels.
        conv1_t_stride: of the first convolution. MONAI's default is 1, MedicalNet's 2.
        no_max_pool: leave out the pooling after the first convolution.
        shortcut_type: zero padding (A) or a 1x1x1 convolution (B) where the width changes.
        bias_downsample: whether that convolution has a bias.

    Raises:
        ManifestError: an unknown readout.
    """
    del shape
    return ResNetStages(
        channels,
        readout,
        block,
        layers,
        block_inplanes,
        conv1_t_size,
        conv1_t_stride,
        no_max_pool,
        shortcut_type,
        bias_downsample,
    )
