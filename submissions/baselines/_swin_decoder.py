"""The decoder of VIS-MAE: the Swin encoder's stages mirrored, without skips, down to pixels.

Attributes are named as the keys of the published layout. Tokens are (N, h, w, C), channels last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..architectures._slices import RGB
from ..architectures._swin_2d import EPS, SwinBlock


class PatchExpanding(nn.Module):
    """A token becomes four neighbours of half the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(dim // 2, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, 2 h, 2 w, C / 2)."""
        x = self.expand(x).unflatten(-1, (2, 2, -1))  # (N, h, w, row, column, C / 2)
        x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        return self.norm(x)


class UpStage(nn.Module):
    """Blocks, and the expanding towards the next stage, where there is one."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, expands: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(SwinBlock(dim, heads, window, (i % 2) * (window // 2)) for i in range(depth))
        )
        self.upsample = PatchExpanding(dim) if expands else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, 2 h, 2 w, C / 2), or the same shape in the last stage."""
        x = self.blocks(x)
        return x if self.upsample is None else self.upsample(x)


class Decoder(nn.Module):
    """The mirror of the encoder, and the token that it is masked with."""

    def __init__(
        self,
        patch: int,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window: int,
    ) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        nn.init.normal_(self.mask_token, std=0.02)  # as of masked autoencoders, arXiv 2111.06377
        self.first_patch_expanding = PatchExpanding(embed_dim * 2 ** (len(depths) - 1))
        self.layers_up = nn.ModuleList(
            UpStage(embed_dim * 2**i, depths[i], num_heads[i], window, expands=i > 0)
            for i in reversed(range(len(depths) - 1))
        )
        self.norm_up = nn.LayerNorm(embed_dim, EPS)
        self.decoder_pred = nn.Linear(embed_dim, patch * patch * RGB)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The last stage's tokens (N, h, w, 8 C) -> pixels of patches, (N, 8 h, 8 w, 3 p p)."""
        x = self.first_patch_expanding(x)
        for stage in self.layers_up:
            x = stage(x)
        return self.decoder_pred(self.norm_up(x))
