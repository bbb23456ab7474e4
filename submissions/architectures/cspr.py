"""CSPR: a 3D ResNet-18 that learnt from 2D images (cross-supervised pretraining).

The variable dimension transform turns a colour image into a volume: its three channels become
three voxels of depth. To keep them, the network strides in the plane only, (1, s, s). On volumes
the same weights may also stride along the depth (``depth_stride``), so that they run at (s, s, s).
The keys are those of the published checkpoint's backbone, which are torchvision's for a ResNet.

The weights know which axis was depth: it is axis 0 of the grid here, rows and columns of an axial
slice are axes 1 and 2. Axes ``"SPL"`` on the card bring a volume into that order.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from ...benchmark.types import Shape
from . import _stages

VERSION = 1
SUMMARY = (
    "CSPR's 3D ResNet-18, pretrained on 2D images; strides in the plane only, or along all axes."
)
READOUTS = (
    "last",
    "concat",
    "last_mean_std",
    "concat_mean_std",
    "last_mean_max",
    "concat_mean_max",
)

Depth = Annotated[int, Field(ge=1, le=64)]

Stride = tuple[int, int, int]


def variable_dimension_transform(images: torch.Tensor) -> torch.Tensor:
    """Colour becomes depth: images (B, 3, H, W) -> volumes (B, 1, 3, H, W)."""
    return images.unsqueeze(1)


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut (He et al., arXiv 1512.03385, figure 5, left)."""

    def __init__(self, channels_in: int, channels: int, stride: Stride, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv3d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm3d(channels)
            )
            if project
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, d, h, w) -> (B, C, d', h', w')."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.downsample(x))


class CSPR(nn.Module):
    """Stem and four stages, without the classifier."""

    # The classifier; "head." is what the framework of the published training calls it.
    unused = (r"fc\.", r"head\.")
    strides = (4, 8, 16, 32)

    def __init__(
        self,
        channels: int,
        readout: str,
        layers: tuple[int, int, int, int],
        base_channels: int,
        depth_stride: bool,
        layer1_downsample: bool,
    ) -> None:
        super().__init__()
        self.readout = _stages.chosen(readout, READOUTS)
        self.depth_stride = depth_stride
        half: Stride = (2, 2, 2) if depth_stride else (1, 2, 2)
        widths = [base_channels * 2**stage for stage in range(4)]  # 64, 128, 256, 512
        self.conv1 = nn.Conv3d(channels, widths[0], 7, half, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(widths[0])
        self.maxpool = nn.MaxPool3d(3, half, padding=1)
        self.layer1 = _stage(layers[0], widths[0], widths[0], (1, 1, 1), layer1_downsample)
        self.layer2 = _stage(layers[1], widths[0], widths[1], half, True)
        self.layer3 = _stage(layers[2], widths[1], widths[2], half, True)
        self.layer4 = _stage(layers[3], widths[2], widths[3], half, True)
        self.width = _stages.width(widths, readout)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, D, H, W) -> the four stages; D stays as it is unless ``depth_stride``."""
        x = functional.relu(self.bn1(self.conv1(x)))  # (B, 64, D, H/2, W/2)
        x = self.maxpool(x)  # (B, 64, D, H/4, W/4)
        found: list[torch.Tensor] = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)  # (B, 64, D, H/4, W/4) ... (B, 512, D, H/32, W/32)
            found.append(x)
        return found

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, D, H, W) -> four maps (B, C_i, d, h, w) at `strides` along all axes.

        Where the network did not stride along the depth, its maps are averaged there.
        """
        stages = self.stages(x)
        if self.depth_stride:
            return stages
        return [
            functional.avg_pool3d(stage, (min(stride, stage.shape[2]), 1, 1), ceil_mode=True)
            for stage, stride in zip(stages, self.strides, strict=True)
        ]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) -> (B, F)."""
        return _stages.pooled(self.stages(x), self.readout)


def _stage(
    blocks: int, channels_in: int, channels: int, stride: Stride, project: bool
) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride, project)
    rest = [BasicBlock(channels, channels, (1, 1, 1), False) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    depth_stride: bool = False,
    layers: tuple[Depth, Depth, Depth, Depth] = (2, 2, 2, 2),
    base_channels: Annotated[int, Field(ge=1, le=256)] = 64,
    layer1_downsample: bool = False,
) -> CSPR:
    """Build the network.

    Args:
        shape: of the grid; any.
        channels: of the grid; 1 for the published weights.
        readout: one of `READOUTS`: of stage 4 (512 channels), or of all stages (960).
        depth_stride: stride along the depth as well: for volumes of about cubic voxels. Without it
            memory and time grow with the depth: for few thick slices, and for images.
        layers: blocks in each stage.
        base_channels: of the first stage; doubled by each stage.
        layer1_downsample: a projection on the first shortcut, which checkpoints of older versions
            of the published code may hold (keys ``layer1.0.downsample``).

    Raises:
        ManifestError: an unknown readout.
    """
    del shape
    return CSPR(channels, readout, layers, base_channels, depth_stride, layer1_downsample)
