"""The parts of a 2D Swin transformer (Liu et al., arXiv 2103.14030), as VIS-MAE has them.

Against the common code: a window shifts and is masked even where it is the whole map, and maps that
windows do not divide are padded with zeros that attention can see. Attributes are named as the keys
of the published state dict. Tokens are (N, h, w, C), channels last.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from ._slices import RGB

EPS = 1e-6
"""Of every LayerNorm."""

MASKED = -100.0
"""Added to the attention between parts of a window that the shift brought together."""


class WindowAttention(nn.Module):
    """Multi-head attention within each window, biased by the tokens' relative position."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(
            nn.init.trunc_normal_(torch.empty((2 * window - 1) ** 2, heads), std=0.02)
        )
        self.register_buffer("relative_position_index", _relative_positions(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(N, windows, n, C), mask (windows, 1, n, n) -> (N, windows, n, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (N, windows, heads, n, C / heads)
        index = self.get_buffer("relative_position_index")
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)  # (heads, n, n)
        if mask is not None:
            bias = bias + mask  # (windows, heads, n, n)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(2, 3).flatten(3))


class SwinBlock(nn.Module):
    """Attention in windows, shifted in every second block, and an MLP."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = WindowAttention(dim, window, heads)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, h, w, C) -> (N, h, w, C)."""
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        _, h, w, _ = x.shape
        size, shift = self.window, self.shift
        x = functional.pad(x, (0, 0, 0, -w % size, 0, -h % size))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        mask = None
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            mask = _shift_mask(x.shape[1], x.shape[2], size, shift, x)
        x = x.unflatten(2, (columns, size)).unflatten(1, (rows, size)).transpose(2, 3)
        x = self.attn(x.flatten(3, 4).flatten(1, 2), mask)  # (N, windows, n, C)
        x = x.unflatten(2, (size, size)).unflatten(1, (rows, columns)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)  # (N, h padded, w padded, C)
        return x.roll((shift, shift), (1, 2))[:, :h, :w]


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, h, w, C) -> (N, h / 2, w / 2, 2 C), odd sides padded with zeros."""
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        offsets = ((0, 0), (1, 0), (0, 1), (1, 1))  # of row and column
        x = torch.cat([x[:, row::2, column::2] for row, column in offsets], dim=-1)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks, and the merging into the next stage, where there is one."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, merges: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(SwinBlock(dim, heads, window, (i % 2) * (window // 2)) for i in range(depth))
        )
        self.downsample = PatchMerging(dim) if merges else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, h, w, C) -> the same after the blocks, and (N, h / 2, w / 2, 2 C) after merging."""
        x = self.blocks(x)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Patches, projected and normalised."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(RGB, dim, patch, patch)
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, h, w, C), the last patches padded with zeros."""
        h, w = images.shape[2:]
        images = functional.pad(images, (0, -w % self.patch, 0, -h % self.patch))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


def _relative_positions(window: int) -> torch.Tensor:
    """(n, n) int64: which row of the bias table belongs to a pair of a window's n tokens."""
    where = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # (n, 2)
    offset = where[:, None] - where[None] + window - 1  # (n, n, 2), from 0
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


def _shift_mask(h: int, w: int, window: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """(windows, 1, n, n): `MASKED` between tokens that are no neighbours but for the roll."""
    part = [
        # 0 in all windows but the last; in that one, 1 before and 2 behind the image's old end.
        (torch.arange(size, device=like.device) >= size - window).long()
        + (torch.arange(size, device=like.device) >= size - shift).long()
        for size in (h, w)
    ]
    region = 3 * part[0][:, None] + part[1][None]  # (h, w)
    region = region.unflatten(1, (-1, window)).unflatten(0, (-1, window)).transpose(1, 2)
    region = region.flatten(2).flatten(0, 1)  # (windows, n)
    apart = region[:, None, :, None] != region[:, None, None, :]
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, MASKED)
