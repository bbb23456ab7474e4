"""The encoder of MONAI's SwinUNETR (Hatamizadeh et al., arXiv 2201.01266).

A state dict of ``monai.networks.nets.SwinUNETR`` loads as it is: the keys here are its keys, the
decoder is left out, and so are the convolution blocks on its skip connections unless ``blocks``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.swin_unetr import SwinTransformer
from pydantic import Field
from torch import nn

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from . import _stages

VERSION = 1
SUMMARY = "Encoder of MONAI's SwinUNETR: Swin stages, on request with its convolution blocks."
READOUTS = _stages.READOUTS

Depth = Annotated[int, Field(ge=1, le=32)]
Heads = Annotated[int, Field(ge=1, le=64)]

_DECODER = (r"decoder[1-5]\.", r"out\.")
_BLOCKS = (r"encoder(1|2|3|4|10)\.",)


class SwinUNETREncoder(nn.Module):
    """``swinViT`` and, on request, ``encoder1`` to ``encoder4`` and ``encoder10``."""

    def __init__(
        self,
        channels: int,
        readout: str,
        feature_size: int,
        depths: tuple[int, int, int, int],
        num_heads: tuple[int, int, int, int],
        window_size: int,
        merging: Literal["merging", "mergingv2"],
        use_v2: bool,
        normalize: bool,
        blocks: bool,
    ) -> None:
        super().__init__()
        self.swinViT = SwinTransformer(
            in_chans=channels,
            embed_dim=feature_size,
            window_size=(window_size,) * 3,
            patch_size=(2, 2, 2),
            depths=depths,
            num_heads=num_heads,
            downsample=merging,
            use_v2=use_v2,
            # The same attention in one kernel (measured: 3.5 times as fast on a CPU). MONAI takes
            # it only where no gradients are recorded.
            use_flash_attention=True,
        )
        self.readout = _stages.chosen(readout, READOUTS)
        self.normalize = normalize
        self.blocks = blocks
        widths = [feature_size * 2**stage for stage in range(5)]  # f, 2 f, 4 f, 8 f, 16 f
        if blocks:
            self.encoder1 = unetr_block(channels, feature_size)
            self.encoder2 = unetr_block(widths[0], widths[0])
            self.encoder3 = unetr_block(widths[1], widths[1])
            self.encoder4 = unetr_block(widths[2], widths[2])
            self.encoder10 = unetr_block(widths[4], widths[4])
            widths = [feature_size, *widths]
        self.strides = tuple(2**stage for stage in range(0 if blocks else 1, 6))
        self.unused = _DECODER if blocks else (*_DECODER, *_BLOCKS)
        self.width = _stages.width(widths, readout)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> Swin stages at strides 2 to 32, or with blocks at strides 1 to 32.

        With blocks the map at stride 16 is the stage itself: SwinUNETR has no block there.
        """
        stages = self.swinViT(x, self.normalize)
        if not self.blocks:
            return stages
        return [
            self.encoder1(x),
            self.encoder2(stages[0]),
            self.encoder3(stages[1]),
            self.encoder4(stages[2]),
            stages[3],
            self.encoder10(stages[4]),
        ]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F)."""
        return _stages.pooled(self.maps(x), self.readout)


def unetr_block(channels_in: int, channels_out: int) -> UnetrBasicBlock:
    """Two 3x3x3 convolutions with instance norm and a shortcut: (B, C_in, ...) -> (B, C, ...)."""
    return UnetrBasicBlock(
        spatial_dims=3,
        in_channels=channels_in,
        out_channels=channels_out,
        kernel_size=3,
        stride=1,
        norm_name="instance",
        res_block=True,
    )


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    feature_size: Annotated[int, Field(ge=12, le=384, multiple_of=12)] = 24,
    depths: tuple[Depth, Depth, Depth, Depth] = (2, 2, 2, 2),
    num_heads: tuple[Heads, Heads, Heads, Heads] = (3, 6, 12, 24),
    window_size: Annotated[int, Field(ge=2, le=16)] = 7,
    merging: Literal["merging", "mergingv2"] = "merging",
    use_v2: bool = False,
    normalize: bool = True,
    blocks: bool = False,
) -> SwinUNETREncoder:
    """Build the encoder.

    Args:
        shape: of the grid; any: Swin pads what its patches, windows and mergings do not divide. On
            multiples of 32, which the whole SwinUNETR asks for, nothing is padded.
        channels: of the grid.
        readout: one of `READOUTS`.
        feature_size: channels at stride 2; doubled by each stage.
        depths: attention blocks in each stage.
        num_heads: of the attention in each stage; each divides its stage's channels.
        window_size: tokens along each side of an attention window.
        merging: order in which MONAI joins eight neighbours into one token.
        use_v2: a residual convolution block before each stage (SwinUNETR-V2).
        normalize: layer norm of each stage's output, as SwinUNETR does.
        blocks: also run the convolution blocks on the skip connections.

    Raises:
        ManifestError: heads do not divide channels, an unknown readout, or a grid so small that a
            convolution block would normalise a single voxel.
    """
    for stage, heads in enumerate(num_heads):
        if feature_size * 2**stage % heads:
            raise ManifestError(
                f"arguments.num_heads: {heads} heads do not divide the {feature_size * 2**stage} "
                f"channels of stage {stage + 1}."
            )
    # Instance norm of one voxel is undefined. V2 blocks run at strides 2 to 16, encoder10 at 32.
    coarsest = 32 if blocks else 16
    if (use_v2 or blocks) and max(shape) <= coarsest:
        raise ManifestError(
            f"grid.shape: {shape} is a single voxel at stride {coarsest}, which the convolution "
            "blocks cannot normalise. Use a larger grid."
        )
    return SwinUNETREncoder(
        channels,
        readout,
        feature_size,
        depths,
        num_heads,
        window_size,
        merging,
        use_v2,
        normalize,
        blocks,
    )
