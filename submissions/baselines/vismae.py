"""VIS-MAE's pretraining: a Swin transformer fills in what was masked of a slice.

As in lzl199704/VIS-MAE 24d4c07 and the Swin MAE it builds on (Dai et al., arXiv 2212.13805): whole
windows of 4 x 4 patches are masked, three in four; their tokens are replaced by a learned one, not
removed; a mirrored decoder without skips predicts the pixels; the error counts masked patches only,
and pixels are not normalised per patch. A slice is resized and flipped at random, nothing else.
Recipe: AdamW (0.9, 0.95), weight decay 0.05, 1e-3 (`full`) after a warm-up, cosine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..architectures import vismae as network
from ..architectures._slices import rgb
from ..architectures._swin_2d import SwinBlock
from ._images import Drawn, Images, Mixture, Slices, resized, unlabelled
from ._pretraining import Objective, Preset, Source
from ._swin_decoder import Decoder
from ._synthetic_volumes import SyntheticVolumes

MEAN, SD = 0.223, 0.202
"""Of intensities in [0, 1]; the authors'."""

WINDOW = 4
"""Patches along each side of a masked window: 16 pixels; the authors'."""

RATIO = 0.75
"""Of the windows that are masked; the authors'."""

SYNTHETIC = {"shape": (48, 48, 48), "maps": 512, "alone": 0.0}
"""Volumes whose slices are seen where no data are given; ours."""

TINY = Preset(
    architecture={"axis": 2, "embed_dim": 24, "window": 4},
    shape=(64, 64, 48),
    readout="stages",
    steps=4000,
    batch=32,
    # Ours: at the authors' 1e-3, for batches of 640, the loss stood still after 400 steps.
    learning_rate=3e-4,
    weight_decay=(0.05, 0.05),
    warmup=150,
    clip=5.0,  # ours
    betas=(0.9, 0.95),
    options={"size": 64, "drop_path": 0.0, "synthetic": SYNTHETIC},
    note="About half an hour on one core.",
)

FULL = Preset(
    architecture={"axis": 2},
    shape=(224, 224, 96),
    readout="pooled_ln",
    # The authors' command: 800 epochs of batches of 640 on 8 GPUs, 10 of them warm-up; how many
    # slices an epoch has is not published. The number of steps is ours.
    steps=100_000,
    batch=640,  # in all; divide by the number of processes
    learning_rate=1e-3,
    weight_decay=(0.05, 0.05),
    warmup=1250,  # 10 epochs of 800
    betas=(0.9, 0.95),
    options={"size": 224, "drop_path": 0.1, "synthetic": SYNTHETIC},
    # Counted by torch, forward and backward; 2.1e18 in all.
    note="33 GFLOP per image, 2.1 EFLOP in all; not yet run on a GPU: hours and memory unmeasured.",
)


class VISMAEObjective(Objective):
    """Encoder and decoder."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.network = network.build(
            shape=preset.shape, channels=1, readout=preset.readout, **preset.architecture
        )
        stages = _blocks(self.network.layers)
        self.patch = self.network.patch_embed.patch
        self.decoder = Decoder(
            self.patch,
            self.network.patch_embed.norm.weight.numel(),
            tuple(len(blocks) for blocks in stages),
            tuple(blocks[0].attn.heads for blocks in stages),
            stages[0][0].window,
        )
        # Deeper blocks are left out more often, linearly (Liu et al., arXiv 2103.14030); the
        # decoder's stages as often as those that they mirror.
        flat = [block for blocks in stages for block in blocks]
        for i, block in enumerate(flat):
            drop_path(block, preset.options["drop_path"] * i / max(len(flat) - 1, 1))
        up = _blocks(self.decoder.layers_up)
        mirrored = [block for blocks in reversed(up) for block in blocks]
        for i, block in enumerate(mirrored):
            drop_path(block, preset.options["drop_path"] * i / max(len(flat) - 1, 1))

    def loss(self, batch: Any, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of masked patches.

        Args:
            batch: images (B, 1 or 3, H, W) uint8, H and W multiples of 16 pixels.
            progress: not used.
        """
        del progress
        images = (rgb(batch).float() / 255 - MEAN) / SD
        tokens = self.network.patch_embed(images)  # (B, h, w, C)
        mask = window_mask(len(images), tokens.shape[1], tokens.shape[2], images.device)
        predicted, latent = self.reconstruct(tokens, mask)
        loss = masked_error(predicted, patchify(images, self.patch), mask)
        with torch.no_grad():
            std = latent.float().mean((1, 2)).std(0).mean()
            measures: dict[str, Any] = {"embedding_std": std}
        return loss, measures

    def reconstruct(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, h, w, C), mask (B, h, w) -> patches (B, h, w, 3 p p), last stage's tokens."""
        token = self.decoder.mask_token.to(tokens.dtype)
        latent = self.network.encode(torch.where(mask[..., None], token, tokens))[-1]
        return self.decoder(latent)[:, : mask.shape[1], : mask.shape[2]], latent

    def encoder(self) -> nn.Module:
        """The network without decoder and mask token."""
        return self.network

    def whole_state(self) -> dict[str, Tensor]:
        """Encoder and decoder under the keys of the published layout."""
        return {**self.network.state_dict(), **self.decoder.state_dict()}

    def load_whole_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `whole_state` or the published pretraining model holds, to go on from there.

        ``pos_embed``, which no token ever meets, is left out.

        Raises:
            RuntimeError: a key is missing or unknown, or a shape differs (torch's message).
        """
        wanted = self.decoder.state_dict().keys()
        self.decoder.load_state_dict({key: state[key] for key in wanted & state.keys()})
        left = {key: v for key, v in state.items() if key not in wanted and key != "pos_embed"}
        self.network.load_state_dict(left)


def _blocks(stages: nn.ModuleList) -> list[list[SwinBlock]]:
    """The blocks of each stage."""
    return [cast("list[SwinBlock]", list(cast("Any", stage).blocks)) for stage in stages]


def drop_path(block: SwinBlock, rate: float) -> list[RemovableHandle]:
    """Leave out a block's two branches for random samples, in train mode (arXiv 1603.09382).

    By hooks on the branches' last parts, so that the block keeps its keys.
    """

    def drop(module: nn.Module, _: Any, y: Tensor) -> Tensor:
        if not module.training:
            return y
        kept = torch.rand(len(y), *[1] * (y.ndim - 1), device=y.device) >= rate
        return y * kept / (1 - rate)

    if not rate:
        return []
    return [part.register_forward_hook(drop) for part in (block.attn, block.mlp)]


def window_mask(batch: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Which tokens are masked, by whole windows: (B, h, w) bool, `RATIO` of the windows of each.

    Args:
        batch: images.
        height: tokens, a multiple of `WINDOW`.
        width: tokens, a multiple of `WINDOW`.
        device: where it is drawn, by torch's generator.
    """
    rows, columns = height // WINDOW, width // WINDOW
    kept = int(rows * columns * (1 - RATIO))
    order = torch.rand(batch, rows * columns, device=device).argsort(1)
    mask = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, :kept], False)
    mask = mask.unflatten(1, (rows, columns))
    return mask.repeat_interleave(WINDOW, 1).repeat_interleave(WINDOW, 2)


def patchify(images: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, h, w, p p C): rows, columns and channels of each patch."""
    x = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (N, C, h, p, w, p)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """(N, h, w, p p C) -> (N, C, H, W): the inverse of `patchify`, to look at predictions."""
    x = patches.unflatten(3, (patch, patch, -1))  # (N, h, w, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def masked_error(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error, averaged over each patch (N, h, w, p p C), then over the masked patches."""
    error = (predicted.float() - target).square().mean(-1)  # (N, h, w)
    return (error * mask).sum() / mask.sum()


@dataclass(frozen=True)
class FlippedImages:
    """Whole images, resized, flipped left to right at random."""

    images: Images
    size: int

    def sample(self, rng: np.random.Generator) -> Tensor:
        """(3, size, size) uint8."""
        image, _ = self.images.draw(rng)
        image = resized(image, self.size)
        if rng.random() < 0.5:
            image = image[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def describe(self) -> str:
        """Of the images."""
        return self.images.describe()


def _tables(low: float, high: float) -> dict[str, Any]:
    """Intensity transforms onto a range; the window of CT, soft tissue, is ours."""
    onto = {"out_low": low, "out_high": high}
    return {
        "HU": {"type": "Window", "low": -160.0, "high": 240.0, **onto},
        "scanner": {"type": "MinMax", **onto},
        "relative": {"type": "Window", "low": 0.0, "high": 1.0, **onto},
    }


@dataclass(frozen=True)
class VISMAE:
    """The pretext."""

    name: str
    architecture: str
    presets: Mapping[str, Preset]

    def objective(self, preset: Preset) -> VISMAEObjective:
        """Encoder and decoder."""
        return VISMAEObjective(preset)

    def source(self, preset: Preset, data: Sequence[Path]) -> Source:
        """Slices and pictures of the given folders; else of synthetic volumes, and drawn."""
        size, tables = preset.options["size"], _tables(0.0, 1.0)
        if data:
            return FlippedImages(unlabelled(data, tables), size)
        seen = SyntheticVolumes.of(tables, **preset.options["synthetic"])
        return FlippedImages(Mixture((Slices(seen), Drawn(size))), size)

    def card(self, preset: Preset) -> Mapping[str, Any]:
        """What the manifest says beyond what the trainer knows."""
        del preset
        return {
            "title": "VIS-MAE: 2D Swin on axial slices, masked autoencoder",
            "intensity": _tables((0 - MEAN) / SD, (1 - MEAN) / SD),
            "pretraining": [],
            "citation": "Liu et al., VIS-MAE, MICCAI-MLMI 2024",
            "source": "https://github.com/lzl199704/VIS-MAE",
            "note": "The authors' objective and numbers, on other data.",
        }


PRETEXT = VISMAE("vismae", "vismae", {"tiny": TINY, "full": FULL})
