"""The encoder of VIS-MAE (Liu et al., MICCAI-MLMI 2024): a 2D Swin transformer, slice by slice.

Layout as of the pre-training model of lzl199704/VIS-MAE 24d4c07, whose decoder is left out. It
differs from the common Swin transformer (Liu et al., arXiv 2103.14030) in that the last stage keeps
its shift and its mask where the map is a single window, in the LayerNorm epsilon of 1e-6, and in
having no norm after the last stage. A position embedding is in the authors' files, but no token
ever meets it: it is left out as well.

An image is grey, repeated to three channels, and normalised by mean 0.223 and SD 0.202 of
intensities in [0, 1]. That is the card's part: an intensity transform with ``out_low = -1.10396``
and ``out_high = 3.84653``. The authors resize slices to 224 x 224; where windows do not divide a
map it is padded as in their pre-training code, with zeros at the end that attention can see.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from . import _stages
from ._slices import Slicewise, check_channels, rgb
from ._swin_2d import EPS, PatchEmbed, Stage

VERSION = 1
SUMMARY = "The 2D Swin encoder of VIS-MAE on slices; mean over slices, four stages restacked."
READOUTS = ("pooled", "pooled_ln", "stages")

Depth = Annotated[int, Field(ge=1, le=32)]
Heads = Annotated[int, Field(ge=1, le=64)]


class SwinMAEEncoder(Slicewise, nn.Module):
    """Patch embedding and four stages; answers for volumes."""

    unused = (
        r"pos_embed$",
        r"mask_token$",
        r"first_patch_expanding\.",
        r"layers_up\.",
        r"norm_up\.",
        r"decoder_pred\.",
    )

    def __init__(
        self,
        readout: str,
        axis: int,
        patch: int,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window: int,
    ) -> None:
        super().__init__()
        self.readout = _stages.chosen(readout, READOUTS)
        self.axis = axis
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        self.strides = tuple(patch * 2**stage for stage in range(len(depths)))
        self.width = sum(widths) if readout == "stages" else widths[-1]
        self.patch_embed = PatchEmbed(patch, embed_dim)
        self.layers = nn.ModuleList(
            Stage(dim, depth, heads, window, merges=dim != widths[-1])
            for dim, depth, heads in zip(widths, depths, num_heads, strict=True)
        )
        # As masked autoencoders are initialised (He et al., arXiv 2111.06377).
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.data.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def encode(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """(N, h, w, C) -> each stage's tokens before they are merged, (N, h_i, w_i, C_i)."""
        found: list[torch.Tensor] = []
        for stage in self.layers:
            tokens, merged = stage(tokens)
            found.append(tokens)
            tokens = merged
        return found

    def planes(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, 1 or 3, H, W) -> 96, 192, 384 and 768 channels at strides 4, 8, 16 and 32."""
        found = self.encode(self.patch_embed(rgb(images)))
        return [tokens.permute(0, 3, 1, 2) for tokens in found]

    def read(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1 or 3, H, W) -> (N, F)."""
        planes = self.planes(images)
        if self.readout == "stages":
            return _stages.pooled(planes, "concat")
        last = planes[-1].flatten(2).transpose(1, 2)  # (N, n, C)
        if self.readout == "pooled_ln":
            last = functional.layer_norm(last, last.shape[-1:], eps=EPS)
        return last.mean(1)


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    axis: Literal[0, 1, 2] = 2,
    patch: Annotated[int, Field(ge=1, le=32)] = 4,
    embed_dim: Annotated[int, Field(ge=1, le=1024)] = 96,
    depths: tuple[Depth, Depth, Depth, Depth] = (2, 2, 2, 2),
    num_heads: tuple[Heads, Heads, Heads, Heads] = (3, 6, 12, 24),
    window: Annotated[int, Field(ge=2, le=32)] = 7,
) -> SwinMAEEncoder:
    """Build the encoder.

    Args:
        shape: of the grid; any. In the slices' plane the authors have 224 x 224.
        channels: of the grid: 1, repeated, or 3.
        readout: of each slice: mean of the last stage (``pooled``); of its tokens after a LayerNorm
            without weights (``pooled_ln``), the norm of the authors' classifier before it has
            learned; or of all four stages, joined (``stages``).
        axis: of the grid, across which slices are cut; 2 is axial on a RAS grid.
        patch: pixels along each side of a patch.
        embed_dim: channels of the first stage; doubled by each stage.
        depths: blocks in each stage.
        num_heads: of the attention in each stage; each divides its stage's channels.
        window: tokens along each side of an attention window.

    Raises:
        ManifestError: heads do not divide channels, two or more than three channels, or an unknown
            readout.
    """
    del shape
    check_channels(channels)
    for stage, heads in enumerate(num_heads):
        if embed_dim * 2**stage % heads:
            raise ManifestError(
                f"arguments.num_heads: {heads} heads do not divide the {embed_dim * 2**stage} "
                f"channels of stage {stage + 1}."
            )
    return SwinMAEEncoder(readout, axis, patch, embed_dim, depths, num_heads, window)
