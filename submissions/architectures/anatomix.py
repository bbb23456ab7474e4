"""The 3D UNet of anatomix (Dey et al., ICLR 2025), one flat sequence of modules ``model.N``.

Each level is two times convolution, batch norm and ReLU (three times at full resolution); max
pooling on the way down, nearest upsampling on the way up, where the skip comes first in the
concatenation; reflect padding; no bias in any convolution. Layout as of neel-dey/anatomix a29b8a8,
variant ``anatomix``: 66 modules, 5,899,344 parameters. The card gives one channel, scaled to [0, 1]
by its minimum and maximum (``MinMax``).

The dense representation is the output, 16 channels at full resolution, followed here by the
coarser levels of the decoder. The vector is ours, since the authors publish none: the spatial means
of one module per level, from the bottleneck up (256 + 128 + 64 + 32 + 16 = 496).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from . import _stages

VERSION = 1
SUMMARY = "The 3D UNet of anatomix; 16 channels at full resolution and the decoder's coarser maps."
READOUTS = ("relu", "conv", "output")


class AnatomixUNet(nn.Module):
    """The whole network, decoder included: its output is the representation."""

    unused: tuple[str, ...] = ()

    def __init__(
        self, channels: int, readout: str, width: int, downs: int, output_channels: int
    ) -> None:
        super().__init__()
        self.readout = _stages.chosen(readout, READOUTS)
        self.downs = downs
        self.strides = tuple(2**level for level in range(downs + 1))
        self._sequence(channels, [width * 2**level for level in range(downs + 1)], output_channels)
        self.width = {
            "relu": width * (2 ** (downs + 1) - 1),
            "conv": width * (2 ** (downs + 1) - 2) + output_channels,
            "output": output_channels,
        }[readout]
        # In eval mode an untrained batch norm is the identity: only a variance of 2 / fan_in
        # (He et al., arXiv 1502.01852) keeps the signal of a random network alive to the end.
        for module in self.model:
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def _sequence(self, channels: int, widths: list[int], output_channels: int) -> None:
        """Lay out the modules and note the places that matter.

        With 4 downs: skips 8, 15, 22, 29; joins 37, 44, 51, 58; first convolutions on the way up
        31, 38, 45, 52, 59; ReLUs that end a level there 36, 43, 50, 57, 64; output 65.
        """
        model: list[nn.Module] = []
        self.skips: list[int] = []
        self.joins: list[int] = []
        self.enters: list[int] = []
        self.ends: list[int] = []

        def convolve(c_in: int, c_out: int) -> None:
            model.extend((_convolution(c_in, c_out), nn.BatchNorm3d(c_out), nn.ReLU()))

        convolve(channels, widths[0])
        before = widths[0]
        for width in widths[:-1]:
            convolve(before, width)
            convolve(width, width)
            self.skips.append(len(model) - 1)
            model.append(nn.MaxPool3d(2))
            before = width
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.joins.append(len(model))
                model.append(nn.Upsample(scale_factor=2, mode="nearest"))
                before += width
            self.enters.append(len(model))
            convolve(before, width)
            convolve(width, width)
            self.ends.append(len(model) - 1)
            before = width
        model.append(_convolution(before, output_channels))
        self.model = nn.Sequential(*model)

    def run(self, x: torch.Tensor, wanted: Collection[int]) -> dict[int, torch.Tensor]:
        """(B, C, X, Y, Z) -> the outputs of the wanted modules, by their number."""
        skips: list[torch.Tensor] = []
        found: dict[int, torch.Tensor] = {}
        for number, module in enumerate(self.model):
            x = module(x)
            if number in self.skips:
                skips.append(x)
            elif number in self.joins:
                x = torch.cat([skips.pop(), x], dim=1)
            if number in wanted:
                found[number] = x
        return found

    @property
    def last(self) -> int:
        """The module that gives the output: 65."""
        return len(self.model) - 1

    @property
    def contrasted(self) -> tuple[int, ...]:
        """The convolutions that the contrastive loss reads: 27, 31, 38, 45, 52, 65.

        The deepest of the encoder, the bottleneck's, one per level of the decoder but the finest,
        and the output.
        """
        return (self.skips[-1] - 2, *self.enters[:-1], self.last)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> 16 channels at stride 1, then 32, 64, 128, 256 at 2, 4, 8, 16."""
        coarse = self.ends[:-1]
        found = self.run(x, {self.last, *coarse})
        return [found[number] for number in (self.last, *reversed(coarse))]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F): spatial means, from the bottleneck up."""
        modules = self._read_out(self.readout)
        found = self.run(x, modules)
        return _stages.pooled([found[number] for number in modules], "concat")

    def _read_out(self, readout: str) -> list[int]:
        """The modules whose means are joined."""
        if readout == "relu":
            return self.ends
        return list(self.contrasted[1:]) if readout == "conv" else [self.last]


def _convolution(channels_in: int, channels_out: int) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, 3, padding=1, padding_mode="reflect", bias=False)


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    width: Annotated[int, Field(ge=1, le=256)] = 16,
    downs: Annotated[int, Field(ge=1, le=6)] = 4,
    output_channels: Annotated[int, Field(ge=1, le=1024)] = 16,
) -> AnatomixUNet:
    """Build the network.

    Args:
        shape: of the grid: a multiple of 2^downs, at least twice that along each axis.
        channels: of the grid.
        readout: means of each decoder level after its last ReLU (``relu``); of the convolutions
            that the loss reads (``conv``); or of the output alone (``output``).
        width: channels at full resolution (the authors' ``ngf``); doubled by each level.
        downs: how often the resolution is halved.
        output_channels: of the output.

    Raises:
        ManifestError: a grid that the levels do not divide, or an unknown readout.
    """
    unit = 2**downs
    if any(n % unit or n < 2 * unit for n in shape):
        raise ManifestError(
            f"grid.shape: {shape}, halved {downs} times (arguments.downs), has to stay whole, and "
            f"at least 2 voxels wide for the reflect padding. Use multiples of {unit} from "
            f"{2 * unit} on, or fewer downs."
        )
    return AnatomixUNet(channels, readout, width, downs, output_channels)
