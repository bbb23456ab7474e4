"""MONAI's 3D Vision Transformer (Dosovitskiy et al., arXiv 2010.11929).

A state dict of ``monai.networks.nets.ViT`` loads as it is; the classifier is left out.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from monai.networks.nets.vit import ViT
from pydantic import Field

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from ._stages import chosen

VERSION = 1
SUMMARY = "MONAI ViT, 3D patches; one map, of the last block, at the stride of a patch."
READOUTS = ("mean", "cls", "cls_mean")


class ViTEncoder(ViT):
    """A ViT that answers with its tokens."""

    # Up to MONAI 1.4 every block held a cross attention that it never ran.
    unused = (r"classification_head\.", r"blocks\.\d+\.cross_attn\.")

    def __init__(
        self,
        shape: Shape,
        channels: int,
        readout: str,
        patch_size: int,
        hidden_size: int,
        mlp_dim: int,
        num_layers: int,
        num_heads: int,
        proj_type: Literal["conv", "perceptron"],
        pos_embed_type: Literal["learnable", "sincos"],
        cls_token: bool,
        qkv_bias: bool,
    ) -> None:
        super().__init__(
            in_channels=channels,
            img_size=shape,
            patch_size=patch_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            proj_type=proj_type,
            pos_embed_type=pos_embed_type,
            classification=cls_token,
            qkv_bias=qkv_bias,
        )
        if cls_token:
            del self.classification_head
        self.readout = readout
        self.tokens = tuple(n // patch_size for n in shape)
        self.strides = (patch_size,)
        self.width = hidden_size * (2 if readout == "cls_mean" else 1)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F): the class token, the mean of the patch tokens, or both."""
        cls, patches = self._split(x)
        parts = {"mean": [patches.mean(1)], "cls": [cls], "cls_mean": [cls, patches.mean(1)]}
        return torch.cat(parts[self.readout], dim=1)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> the normalised patch tokens in their places, (B, D, x, y, z)."""
        _, patches = self._split(x)
        return [patches.transpose(1, 2).reshape(x.shape[0], -1, *self.tokens)]

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class token (B, D), without columns if there is none, and patch tokens (B, n, D)."""
        tokens = self(x)[0]  # after the final norm
        if self.classification:
            return tokens[:, 0], tokens[:, 1:]
        return tokens[:, 0, :0], tokens


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    patch_size: Annotated[int, Field(ge=1, le=64)] = 16,
    hidden_size: Annotated[int, Field(ge=6, le=4096)] = 768,
    mlp_dim: Annotated[int, Field(ge=1, le=16384)] = 3072,
    num_layers: Annotated[int, Field(ge=1, le=64)] = 12,
    num_heads: Annotated[int, Field(ge=1, le=64)] = 12,
    proj_type: Literal["conv", "perceptron"] = "conv",
    pos_embed_type: Literal["learnable", "sincos"] = "learnable",
    cls_token: bool = False,
    qkv_bias: bool = False,
) -> ViTEncoder:
    """Build the network.

    Args:
        shape: of the grid: a multiple of ``patch_size``; the position embedding is made for it.
        channels: of the grid.
        readout: ``mean`` of the patch tokens, the ``cls`` token, or both.
        patch_size: voxels along each side of a patch.
        hidden_size: D, a multiple of ``num_heads``.
        mlp_dim: width of the hidden layer of each block.
        num_layers: blocks.
        num_heads: of the attention.
        proj_type: how patches are embedded.
        pos_embed_type: learned, or sines and cosines (then D is a multiple of 6).
        cls_token: whether there is one, as in MONAI's ViT with ``classification=True``.
        qkv_bias: of the attention.

    Raises:
        ManifestError: the grid is no multiple of the patch, a width does not divide, or the readout
            needs a class token that the network has not.
    """
    chosen(readout, READOUTS)
    if any(n % patch_size for n in shape):
        raise ManifestError(
            f"grid.shape: {shape} is not a multiple of arguments.patch_size ({patch_size}). "
            "Choose a grid that patches fill."
        )
    if hidden_size % num_heads or (pos_embed_type == "sincos" and hidden_size % 6):
        raise ManifestError(
            f"arguments.hidden_size: {hidden_size} has to be a multiple of num_heads "
            f"({num_heads}), and of 6 for sincos positions."
        )
    if readout != "mean" and not cls_token:
        raise ManifestError(
            f"readout: '{readout}' needs arguments.cls_token = true. Without one use 'mean'."
        )
    return ViTEncoder(
        shape,
        channels,
        readout,
        patch_size,
        hidden_size,
        mlp_dim,
        num_layers,
        num_heads,
        proj_type,
        pos_embed_type,
        cls_token,
        qkv_bias,
    )
