"""The parts of a DINOv3 vision transformer: rotary attention, layer scale, blocks.

Written from the papers: vision transformer (Dosovitskiy et al., arXiv 2010.11929), layer scale
(Touvron et al., arXiv 2103.17239), rotary embedding of patches' places (Siméoni et al., arXiv
2508.10104). Attributes are named as the keys of the published state dicts.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

EPS = 1e-6
"""Of every LayerNorm."""

BASE = 100.0
"""Of the rotary embedding: its periods run from 1 towards it, in half images."""

Rope = tuple[torch.Tensor, torch.Tensor]
"""Sine and cosine of each patch token's angles, (n, D / heads) each, in the type to rotate in."""


class RotaryEmbedding(nn.Module):
    """Angles from the places of patches, by periods that belong to the checkpoint."""

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        count = head_dim // 4  # half of the pairs turn with the row, half with the column
        periods = BASE ** (torch.arange(count) / count)
        self.register_buffer("periods", periods.to(torch.bfloat16))

    def forward(self, h: int, w: int) -> Rope:
        """Of a grid of h x w patches, row by row; the image spans [-1, 1] along both axes."""
        periods = self.get_buffer("periods").to(self.dtype)
        row, column = (
            torch.arange(0.5, n, dtype=self.dtype, device=periods.device) / n for n in (h, w)
        )
        place = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).flatten(0, 1)
        place = 2.0 * place - 1.0  # (n, 2)
        angles = 2 * math.pi * place[:, :, None] / periods  # (n, 2, D / heads / 4)
        angles = angles.flatten(1).tile(2)  # (n, D / heads): the halves form the pairs
        return angles.sin(), angles.cos()


class MaskedBiasLinear(nn.Linear):
    """Queries, keys and values with a bias, of which that of the keys is masked, as in DINOv3."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)
        mask = torch.ones(3, dim)
        mask[1] = 0
        self.register_buffer("bias_mask", mask.flatten())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., 3 D)."""
        return functional.linear(input, self.weight, self.bias * self.get_buffer("bias_mask"))


class Attention(nn.Module):
    """Multi-head attention of all tokens, the patches' turned by their places."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = MaskedBiasLinear(dim) if qkv_bias else nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, rope: Rope) -> torch.Tensor:
        """(N, tokens, D) -> (N, tokens, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, tokens, D / heads)
        q, k = rotate(q, rope), rotate(k, rope)
        x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """One learned factor per channel of a residual branch."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, D) -> (N, tokens, D)."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and an MLP, each normalised before and scaled after."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = Attention(dim, heads, qkv_bias)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim))
        )
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, x: torch.Tensor, rope: Rope) -> torch.Tensor:
        """(N, tokens, D) -> (N, tokens, D)."""
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        return x + self.ls2(self.mlp(self.norm2(x)))


def rotate(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """(N, heads, tokens, d): turn the pairs (i, i + d / 2) of the patch tokens, which come last.

    All tokens pass through the type that the angles are in, the others unturned.
    """
    sine, cosine = rope
    exact = x.to(sine.dtype)
    before = x.shape[2] - sine.shape[0]
    patches = exact[:, :, before:]
    one, other = patches.chunk(2, dim=-1)
    turned = patches * cosine + torch.cat([-other, one], dim=-1) * sine
    return torch.cat([exact[:, :, :before], turned], dim=2).to(x.dtype)
