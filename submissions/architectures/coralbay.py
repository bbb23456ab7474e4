"""CoralBay: a 3D Swin with the UNETR convolution blocks of its skip connections, for CT.

Six maps at strides 1 to 32; the embedding that its self-distillation (DINO) is trained on joins
the means of five of them, 48 + 48 + 96 + 192 + 768 = 1152. Arguments are those of the published
encoder unless given; the keys are those of the ``SwinUNETREncoder`` in kaiko's *eva*, on which it
is built. Its input is one channel at 1.5 mm, [-1000, 1000] HU brought to [0, 1].

Its patch merging has a history. MONAI up to 1.4 joined eight neighbours of which two were taken
twice and two not at all; from 1.5 on it joins all eight, under the same keys. Weights trained with
one of them load into the other without a word and give other features, so both are here, spelt
out, whatever MONAI is installed: ``merging`` names one and is part of the model's identity.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from pydantic import Field
from torch import nn
from torch.nn import functional

from ...benchmark.errors import ManifestError
from ...benchmark.types import Shape
from . import _stages
from .swin_unetr import Depth, Heads, unetr_block

VERSION = 1
SUMMARY = "CoralBay's 3D Swin with UNETR blocks: six maps, strides 1 to 32, multi-scale embedding."
READOUTS = ("concat", "head", "concat_six", "last_stage")

# Neighbours along the three axes, in the order in which they are joined. Read in MONAI's releases:
# "legacy" is PatchMerging of 1.3.2 and 1.4.0, "fixed" that of 1.5.0 to 1.6.1.
LEGACY = ("000", "100", "010", "001", "101", "010", "001", "111")
FIXED = ("000", "100", "010", "001", "110", "101", "011", "111")


class PatchMerging(nn.Module):
    """Eight neighbours become one token of twice the width (Swin, arXiv 2103.14030, in 3D)."""

    neighbours = FIXED

    def __init__(
        self, dim: int, norm_layer: type[nn.LayerNorm] = nn.LayerNorm, spatial_dims: int = 3
    ) -> None:
        super().__init__()
        del spatial_dims  # MONAI passes it; this is the one for volumes
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, X, Y, Z, C) -> (B, X/2, Y/2, Z/2, 2 C), rounded up: zeros fill an odd side."""
        odd_x, odd_y, odd_z = (n % 2 for n in x.shape[1:4])
        x = functional.pad(x, (0, 0, 0, odd_z, 0, odd_y, 0, odd_x))
        offsets = [tuple(map(int, one)) for one in self.neighbours]
        x = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in offsets], -1)  # (B, ..., 8 C)
        return self.reduction(self.norm(x))


class LegacyPatchMerging(PatchMerging):
    """Two of the eight neighbours twice, two never."""

    neighbours = LEGACY


MERGINGS = {"fixed": PatchMerging, "legacy": LegacyPatchMerging}


class CoralBay(nn.Module):
    """``swinViT`` and the blocks ``encoder1`` to ``encoder4`` and ``encoder10``."""

    def __init__(
        self,
        channels: int,
        readout: str,
        merging: Literal["fixed", "legacy"],
        feature_size: int,
        depths: tuple[int, int, int, int],
        num_heads: tuple[int, int, int, int],
        window_size: int,
        use_v2: bool,
        blocks: bool,
    ) -> None:
        super().__init__()
        f = feature_size
        self.swinViT = SwinTransformer(
            in_chans=channels,
            embed_dim=f,
            window_size=(window_size,) * 3,
            patch_size=(2, 2, 2),
            depths=depths,
            num_heads=num_heads,
            downsample=MERGINGS[merging],
            use_v2=use_v2,
            # The same attention in one kernel; MONAI takes it where no gradients are recorded.
            use_flash_attention=True,
        )
        self.blocks = blocks
        if blocks:
            self.encoder1 = unetr_block(channels, f)
            self.encoder2 = unetr_block(f, f)
            self.encoder3 = unetr_block(2 * f, 2 * f)
            self.encoder4 = unetr_block(4 * f, 4 * f)
            self.encoder10 = unetr_block(16 * f, 16 * f)
        self.strides = (1, 2, 4, 8, 16, 32) if blocks else (2, 4, 8, 16, 32)
        self.unused = () if blocks else (r"encoder(1|2|3|4|10)\.",)
        self.readout = _stages.chosen(readout, READOUTS)
        widths = {"concat": 24, "head": 16, "concat_six": 32, "last_stage": 16}
        self.width = f * (widths[readout] if blocks else {"concat": 31}.get(readout, 16))

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> the maps at `strides`, fine to coarse."""
        return self._maps(x, self.swinViT(x))

    def _maps(self, x: torch.Tensor, stages: list[torch.Tensor]) -> list[torch.Tensor]:
        if not self.blocks:
            return stages  # 48, 96, 192, 384, 768
        return [
            self.encoder1(x),  # (B, 48, X, Y, Z)
            self.encoder2(stages[0]),  # (B, 48, X/2, Y/2, Z/2)
            self.encoder3(stages[1]),  # (B, 96, X/4, Y/4, Z/4)
            self.encoder4(stages[2]),  # (B, 192, X/8, Y/8, Z/8)
            stages[3],  # (B, 384, X/16, Y/16, Z/16): has no block
            self.encoder10(stages[4]),  # (B, 768, X/32, Y/32, Z/32)
        ]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F)."""
        stages = self.swinViT(x)  # each ends in a layer norm over its channels, without weights
        if self.readout == "last_stage":
            return stages[4].mean((2, 3, 4))
        if self.readout == "head" and self.blocks:
            return self.encoder10(stages[4]).mean((2, 3, 4))
        maps = self._maps(x, stages)
        if self.readout == "head":
            return maps[-1].mean((2, 3, 4))
        if self.readout == "concat" and self.blocks:
            del maps[4]  # the stage without a block
        return torch.cat([one.mean((2, 3, 4)) for one in maps], dim=1)


def build(
    *,
    shape: Shape,
    channels: int,
    readout: str,
    merging: Literal["fixed", "legacy"] = "fixed",
    feature_size: Annotated[int, Field(ge=12, le=384, multiple_of=12)] = 48,
    depths: tuple[Depth, Depth, Depth, Depth] = (2, 2, 2, 2),
    num_heads: tuple[Heads, Heads, Heads, Heads] = (3, 6, 12, 24),
    window_size: Annotated[int, Field(ge=2, le=16)] = 7,
    use_v2: bool = True,
    blocks: bool = True,
) -> CoralBay:
    """Build the encoder.

    Args:
        shape: of the grid; any. Only multiples of 32 avoid padding: elsewhere zeros are appended
            to the image (air, on this card's scale) to fill its 2x2x2 patches, and to the maps to
            fill windows and mergings. Maps have the grid's shape divided by their stride, rounded
            up; means over them take in what came of that padding.
        channels: of the grid; 1 for the published weights.
        readout: ``concat``: means of all maps but the one at stride 16 (of all, without blocks),
            as published; ``head``: of the last map; ``concat_six``: of all six maps;
            ``last_stage``: of the last Swin stage before its block.
        merging: what its patch merging joins; see the module. Which one the published weights were
            trained with is not stated anywhere.
        feature_size: channels at strides 1 and 2; doubled by each Swin stage.
        depths: attention blocks in each stage.
        num_heads: of the attention in each stage; each divides its stage's channels.
        window_size: tokens along each side of an attention window.
        use_v2: a residual convolution block before each stage (SwinUNETR-V2).
        blocks: run the convolution blocks on the skip connections. Without, the maps are the five
            Swin stages.

    Raises:
        ManifestError: heads do not divide channels, an unknown readout or one that needs blocks, or
            a grid so small that a convolution block would normalise a single voxel.
    """
    for stage, heads in enumerate(num_heads):
        if feature_size * 2**stage % heads:
            raise ManifestError(
                f"arguments.num_heads: {heads} heads do not divide the {feature_size * 2**stage} "
                f"channels of stage {stage + 1}."
            )
    if not blocks and readout in ("concat_six", "last_stage"):
        raise ManifestError(
            f"readout: '{readout}' differs from 'concat' or 'head' only where there are blocks. "
            "Use one of those, or arguments.blocks = true."
        )
    # Instance norm of one voxel is undefined. V2 blocks run at strides 2 to 16, encoder10 at 32.
    coarsest = 32 if blocks else 16
    if (use_v2 or blocks) and max(shape) <= coarsest:
        raise ManifestError(
            f"grid.shape: {shape} is a single voxel at stride {coarsest}, which the convolution "
            "blocks cannot normalise. Use a larger grid."
        )
    return CoralBay(
        channels,
        readout,
        merging,
        feature_size,
        depths,
        num_heads,
        window_size,
        use_v2,
        blocks,
    )
