"""BrainDINO (arXiv 2604.27277): a ViT-B/16 of the DINOv3 kind, on axial slices of the brain.

A vision transformer (Dosovitskiy et al., arXiv 2010.11929) with storage tokens (Darcet et al.,
arXiv 2309.16588), layer scale (Touvron et al., arXiv 2103.17239) and, in place of a position
embedding, rotary embedding of the patch tokens' queries and keys (Siméoni et al., arXiv
2508.10104). Layout as of mclwu22/BrainDINO 00bea8f. Two things there are easily missed: the periods
of the rotary embedding are stored, as bfloat16; and its arithmetic, up to the rotated queries and
keys, is bfloat16 unless ``rope = "fp32"``. Which of the two the paper's features were made with is
not known: it is an argument, and so part of the model's identity.

The authors' recipe, for the card: skull stripped, a RAS grid of 256 x 256 x 128, clipped at 0.5 and
99.5 percent, z-scored over the foreground (``ZScore``), no further normalisation, grey repeated to
three channels. The embedding is the mean over all slices, the empty ones included.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from . import _stages
from ._rotary_vit import EPS, Block, RotaryEmbedding
from ._slices import RGB, Slicewise, check_channels, rgb

VERSION = 1
SUMMARY = "BrainDINO's ViT on slices; mean over slices, four blocks joined into one dense map."
READOUTS = ("cls", "mean", "cls_mean")


class BrainDINOViT(Slicewise, nn.Module):
    """The transformer; answers for volumes."""

    # Heads of the pretraining, and a norm that only local crops met.
    unused = (r".*ibot", r".*dino_head", r"local_cls_norm\.")

    def __init__(
        self,
        readout: str,
        axis: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        storage_tokens: int,
        qkv_bias: bool,
        layer_scale: float,
        rope: Literal["bf16", "fp32"],
    ) -> None:
        super().__init__()
        self.readout = _stages.chosen(readout, READOUTS)
        self.axis = axis
        self.strides = (patch,)
        self.width = dim * (2 if readout == "cls_mean" else 1)
        # The last of each quarter: 2, 5, 8 and 11 of 12, counted from 0.
        self.dense = sorted({math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.storage_tokens = nn.Parameter(torch.randn(1, storage_tokens, dim) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(RGB, dim, patch, patch)))
        self.rope_embed = RotaryEmbedding(
            dim // heads, {"bf16": torch.bfloat16, "fp32": torch.float32}[rope]
        )
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, EPS)
        # At the published width the usual 0.02 of vision transformers; the same gain at others.
        std = 0.02 * math.sqrt(768 / dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def run(
        self,
        images: torch.Tensor,
        wanted: Collection[int],
        masks: torch.Tensor | None = None,
    ) -> dict[int, torch.Tensor]:
        """Tokens after the wanted blocks, before the final norm.

        Args:
            images: (N, 1 or 3, H, W).
            wanted: blocks, counted from 0.
            masks: (N, h, w) bool: patches whose place the mask token takes, in pretraining.

        Returns:
            By block, (N, 1 + storage + h w, D): CLS, storage tokens, patches row by row.
        """
        patches = self.patch_embed(rgb(images)).permute(0, 2, 3, 1)  # (N, h, w, D)
        n, h, w, _ = patches.shape
        if masks is not None:
            patches = torch.where(masks[..., None], self.mask_token, patches)
        before = [tokens.expand(n, -1, -1) for tokens in (self.cls_token, self.storage_tokens)]
        x = torch.cat([*before, patches.flatten(1, 2)], dim=1)
        rope = self.rope_embed(h, w)
        found: dict[int, torch.Tensor] = {}
        for number, block in enumerate(self.blocks):
            x = block(x, rope)
            if number in wanted:
                found[number] = x
        return found

    def planes(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, 1 or 3, H, W) -> one map: the normalised patch tokens of `dense`, 4 D channels."""
        found = self.run(images, self.dense)
        normed = [self.norm(found[number]) for number in self.dense]
        return [torch.cat([self._in_place(tokens, images) for tokens in normed], dim=1)]

    def read(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1 or 3, H, W) -> (N, F)."""
        last = len(self.blocks) - 1
        tokens = self.norm(self.run(images, {last})[last])
        parts = {"cls": [tokens[:, 0]], "mean": [tokens[:, self._first :].mean(1)]}
        parts["cls_mean"] = parts["cls"] + parts["mean"]
        return torch.cat(parts[self.readout], dim=1)

    @property
    def _first(self) -> int:
        """The first patch token."""
        return 1 + self.storage_tokens.shape[1]

    def _in_place(self, tokens: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """(N, tokens, D) -> (N, D, h, w): the patch tokens where they came from."""
        h, w = (n // self.strides[0] for n in images.shape[2:])
        return tokens[:, self._first :].transpose(1, 2).unflatten(2, (h, w))


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    axis: Literal[0, 1, 2] = 2,
    patch: Annotated[int, Field(ge=1, le=64)] = 16,
    dim: Annotated[int, Field(ge=4, le=4096)] = 768,
    depth: Annotated[int, Field(ge=1, le=64)] = 12,
    heads: Annotated[int, Field(ge=1, le=64)] = 12,
    storage_tokens: Annotated[int, Field(ge=0, le=64)] = 4,
    qkv_bias: bool = False,
    layer_scale: Annotated[float, Field(gt=0, le=1)] = 1e-5,
    rope: Literal["bf16", "fp32"] = "bf16",
) -> BrainDINOViT:
    """Build the network.

    Args:
        shape: of the grid: in the slices' plane a multiple of ``patch``.
        channels: of the grid: 1, repeated, or 3.
        readout: of each slice: the ``cls`` token, the ``mean`` of the patch tokens, or both; all
            after the final norm.
        axis: of the grid, across which slices are cut; 2 is axial on a RAS grid.
        patch: pixels along each side of a patch.
        dim: D, a multiple of 4 ``heads``.
        depth: blocks.
        heads: of the attention.
        storage_tokens: beside the CLS token; also called registers.
        qkv_bias: of queries and values, as in DINOv3; the keys' is masked. BrainDINO has none.
        layer_scale: initial; weights that are loaded replace it. At 1e-5, the authors', a random
            network passes its input on almost untouched and its CLS token hardly sees the image:
            use 1 where the random network is the question.
        rope: arithmetic of the rotary embedding.

    Raises:
        ManifestError: the grid is no multiple of the patch, D does not divide, two or more than
            three channels, or an unknown readout.
    """
    check_channels(channels)
    plane = [n for i, n in enumerate(shape) if i != axis]
    if any(n % patch for n in plane):
        raise ManifestError(
            f"grid.shape: the slices of {shape} across axis {axis} are {plane[0]} x {plane[1]}, no "
            f"multiple of arguments.patch ({patch}). Choose a grid that patches fill."
        )
    if dim % (4 * heads):
        raise ManifestError(
            f"arguments.dim: {dim} has to be a multiple of 4 heads ({4 * heads}): rows and columns "
            "turn pairs of each head's channels. Change dim or heads."
        )
    return BrainDINOViT(
        readout, axis, patch, dim, depth, heads, storage_tokens, qkv_bias, layer_scale, rope
    )
