"""BrainDINO's pretraining: DINO on the CLS token, iBOT on the patches, KoLeo, on axial slices.

Published: two stages of the DINOv3 kind on 6.6 M axial slices of 20 data sets; the training code
and its numbers were not found. ``full`` takes DINOv2's and DINOv3's own defaults for a ViT-B
(arXiv 2304.07193, 2508.10104 and their code); its last tenth adds Gram anchoring, as the second
stage. The second stage's larger crops are a run of their own: ``global_size`` 512, ``local_size``
112 (DINOv3's adaptation), 10 000 steps from the first stage's weights: not here, because a run
starts from random weights; nor is stochastic depth, which the network does not have. Marked [D]:
our choice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ..architectures import get
from ._multi_crop import Volumes, block_mask, crop_2d, jittered
from ._pretraining import Preset
from ._self_distillation import (
    Head,
    SelfDistillation,
    dino_loss,
    gram_loss,
    ibot_loss,
    koleo_loss,
    measures,
)
from ._synthetic_volumes import SyntheticVolumes
from ._volumes import axial_slice, volumes

if TYPE_CHECKING:
    from ..architectures.braindino import BrainDINOViT
    from ._pretraining import Source

FULL = Preset(
    architecture={},  # as published: ViT-B/16, 4 storage tokens
    shape=(256, 256, 128),  # the authors' grid
    readout="cls",
    steps=125_000,  # DINOv2: 100 epochs of 1250 steps
    batch=64,  # [D]: what an 80 GB GPU holds with room; four processes make 256
    learning_rate=1e-3,  # for 64; DINOv2: 4e-3 sqrt(batch / 1024)
    weight_decay=(0.04, 0.4),
    warmup=12_500,  # 10 of 100 epochs
    clip=3.0,
    options={
        # Without data, ours: slices as large as a head at 3 mm.
        "synthetic": {"shape": (64, 64, 32), "maps": 384, "alone": 0.5},
        "global_size": 224,
        "global_area": (0.32, 1.0),
        "local_size": 96,
        "local_area": (0.05, 0.32),
        "locals": 8,
        "flip": 0.5,
        "jitter": {"gamma": 0.5, "blur": 1.0, "noise": 0.1},  # [D] in place of colour jitter
        "mask_probability": 0.5,
        "mask_share": (0.1, 0.5),
        "hidden": 2048,
        "bottleneck": 256,
        "prototypes": 65_536,
        "targets": "sinkhorn",  # DINOv3
        "student_temperature": 0.1,
        "teacher_temperature": (0.04, 0.07),
        "teacher_warmup": 0.3,  # 30 of 100 epochs
        "momentum": (0.992, 1.0),
        "freeze_last": 0.01,  # 1 of 100 epochs
        "ibot_weight": 1.0,
        "koleo_weight": 0.1,
        "layer_decay": 0.9,
        "patch_embed_rate": 0.2,
        "gram_weight": 2.0,  # DINOv3's Gram anchoring
        "gram_start": 0.9,  # [D]
    },
    # Counted: forward 35.9 GFLOP at 224^2, 7.07 at 96^2; backward as two forwards; the teacher sees
    # the large crops. Stored for backward: 0.53 GiB per sample in float32. The hours assume a
    # quarter of an H100's 989 TFLOP/s in bfloat16; no run of it was timed.
    note="0.47 TFLOP per sample, 3.8e18 in all: about 4 H100 hours at a quarter of its peak "
    "(computed); about 40 GB of GPU memory (computed).",
)

TINY = Preset(
    architecture={"patch": 8, "dim": 96, "depth": 4, "heads": 3, "layer_scale": 1.0},
    shape=(48, 56, 48),  # as the random copy: an adult head at 4 mm
    readout="cls",
    steps=3000,
    batch=32,
    learning_rate=5e-4,  # [D]: at 2e-3 it learnt to tell less apart
    weight_decay=(0.04, 0.04),
    warmup=150,
    clip=3.0,
    # [D]. Crops keep the scale of the slices, so that size stays in the features.
    options={
        **FULL.options,
        "global_size": 48,
        "global_area": (0.5625, 0.5625),  # 48 x 48 of 64 x 64
        "local_size": 24,
        "local_area": (0.14, 0.14),  # 24 x 24
        "locals": 2,
        "jitter": {"gamma": 0.5, "blur": 0.5, "noise": 0.1},
        "hidden": 256,
        "bottleneck": 64,
        "prototypes": 512,
        "teacher_temperature": (0.04, 0.04),
        "momentum": (0.95, 1.0),  # a teacher that follows within 1500 steps
        "freeze_last": 0.0,
        "koleo_weight": 0.03,  # in a sample of 32 the nearest neighbour often shows the same place
        "layer_decay": 1.0,
        "patch_embed_rate": 1.0,
        "gram_weight": 0.0,
    },
    note="Shows that the objectives learn; not the paper's weights.",
)

PATCH = 16
"""Pixels; of the published network."""


class BrainDINOObjective(SelfDistillation):
    """DINO + iBOT + 0.1 KoLeo, later Gram anchoring."""

    def __init__(self, preset: Preset) -> None:
        network = cast(
            "BrainDINOViT",
            get("braindino").build(
                shape=preset.shape, channels=1, readout=preset.readout, **preset.architecture
            ),
        )
        dim = network.cls_token.shape[-1]
        sizes = [preset.options[name] for name in ("hidden", "bottleneck", "prototypes")]
        super().__init__(
            network, {"dino": Head(dim, *sizes), "ibot": Head(dim, *sizes)}, preset.options
        )
        self.anchor = (
            copy.deepcopy(self.teacher["backbone"]) if self.options["gram_weight"] else None
        )

    def loss(self, batch: Mapping[str, Tensor], progress: float) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum.

        Args:
            batch: ``global`` (B, T, 1, H, W), ``local`` (B, L, 1, h, w) and ``masks``
                (B, T, H / patch, W / patch) bool.
            progress: share of the steps done.
        """
        large, small, masks = (batch[k].transpose(0, 1) for k in ("global", "local", "masks"))
        crops, images = large.shape[:2]
        large, small, masks = (x.flatten(0, 1) for x in (large, small, masks))
        hidden = masks.flatten(1)  # (T B, P)
        with torch.no_grad():
            teacher_cls, teacher_patches = _tokens(self.teacher["backbone"], large)
            targets = self.targets("dino", teacher_cls, progress)
            patch_targets = self.targets("ibot", teacher_patches[hidden], progress)
        student, temperature = self.student, self.options["student_temperature"]
        cls, patches = _tokens(student["backbone"], large, masks)
        local_cls, _ = _tokens(student["backbone"], small)
        logits = student["dino"](torch.cat([cls, local_cls])).unflatten(0, (-1, images))
        dino = dino_loss(targets.unflatten(0, (crops, images)), logits, temperature)
        ibot = ibot_loss(patch_targets, student["ibot"](patches[hidden]), hidden, temperature)
        # Per large crop: two crops of one image are meant to be near. Summed as in DINOv2's code.
        koleo = torch.stack([koleo_loss(one) for one in cls.unflatten(0, (crops, images))]).sum()
        total = dino + self.options["ibot_weight"] * ibot + self.options["koleo_weight"] * koleo
        found = {
            "dino": float(dino.detach()),
            "ibot": float(ibot.detach()),
            "koleo": float(koleo.detach()),
        }
        if self.anchor is not None:
            gram = self._gram(large, patches, progress)
            total = total + self.options["gram_weight"] * gram
            found["gram"] = float(gram.detach())
        return total, {**found, **measures(teacher_cls, targets)}

    def after_step(self, progress: float) -> None:
        """Move the teacher; until anchoring starts, the anchor is the teacher."""
        super().after_step(progress)
        if self.anchor is not None and progress < self.options["gram_start"]:
            self.anchor.load_state_dict(self.teacher["backbone"].state_dict())

    def rate(self, name: str) -> float:
        """DINOv2's: the deeper, the faster; patches slower still."""
        depth = len(cast("BrainDINOViT", self.student["backbone"]).blocks)
        part, _, rest = name.partition(".")
        if part == "norm":
            return 1.0
        layer = int(rest.split(".")[0]) + 1 if part == "blocks" else 0
        rate = self.options["layer_decay"] ** (depth + 1 - layer)
        return rate * (self.options["patch_embed_rate"] if part == "patch_embed" else 1.0)

    def _gram(self, large: Tensor, patches: Tensor, progress: float) -> Tensor:
        if self.anchor is None or progress < self.options["gram_start"]:
            return patches.sum() * 0
        with torch.no_grad():
            _, anchor = _tokens(self.anchor, large)
        return gram_loss(patches, anchor)


def _tokens(
    network: torch.nn.Module, images: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(N, 1, H, W) -> CLS (N, D) and patches (N, P, D), after the final norm."""
    vit = cast("BrainDINOViT", network)
    last = len(vit.blocks) - 1
    tokens = vit.norm(vit.run(images, {last}, masks)[last])
    return tokens[:, 0], tokens[:, 1 + vit.storage_tokens.shape[1] :]


@dataclass(frozen=True)
class SliceCrops:
    """Large and small crops of axial slices, with the patches to mask in the large ones."""

    volumes: Volumes
    options: Mapping[str, Any]
    patch: int

    def sample(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """``global`` (2, 1, H, W), ``local`` (L, 1, h, w) float32; ``masks`` (2, H/p, W/p) bool."""
        image = axial_slice(self.volumes.sample(rng), rng)
        side = self.options["global_size"] // self.patch
        return {
            "global": self._crops(image, "global", 2, rng),
            "local": self._crops(image, "local", self.options["locals"], rng),
            "masks": torch.from_numpy(np.stack([self._mask(side, rng) for _ in range(2)])),
        }

    def _mask(self, side: int, rng: np.random.Generator) -> np.ndarray:
        masked = rng.random() < self.options["mask_probability"]
        share = rng.uniform(*self.options["mask_share"]) if masked else 0.0
        return block_mask((side, side), share, rng)

    def _crops(self, image: np.ndarray, kind: str, count: int, rng: np.random.Generator) -> Tensor:
        size, area = self.options[f"{kind}_size"], self.options[f"{kind}_area"]
        crops = [
            jittered(
                crop_2d(image, size, area, rng, flip=self.options["flip"]),
                rng,
                **self.options["jitter"],
            )
            for _ in range(count)
        ]
        return torch.from_numpy(np.stack(crops)[:, None])

    def describe(self) -> str:
        """Of the volumes."""
        return f"axial slices of {self.volumes.describe()}"


INTENSITY = {
    "scanner": {"type": "ZScore", "low_percentile": 0.5, "high_percentile": 99.5},  # the authors'
    # Beyond brain MR, for tasks that ask: the soft-tissue window of CT over as many units. [D]
    "HU": {"type": "Window", "low": -160.0, "high": 240.0, "out_low": -2.0, "out_high": 2.0},
    "relative": {"type": "ZScore"},
}


def _synthetic(preset: Preset) -> SyntheticVolumes:
    return SyntheticVolumes.of(INTENSITY, **preset.options["synthetic"])


@dataclass(frozen=True)
class BrainDINO:
    """The pretext."""

    name: str
    architecture: str
    presets: Mapping[str, Preset]

    def objective(self, preset: Preset) -> BrainDINOObjective:
        """Student, teacher and their heads."""
        return BrainDINOObjective(preset)

    def source(self, preset: Preset, data: Sequence[Path]) -> Source:
        """Crops of axial slices of the given volumes, at their own spacing; else synthetic."""
        patch = preset.architecture.get("patch", PATCH)
        seen = volumes(data, intensity=INTENSITY) if data else _synthetic(preset)
        return SliceCrops(seen, preset.options, patch)

    def card(self, preset: Preset) -> Mapping[str, Any]:
        """What the manifest says beyond what the trainer knows."""
        del preset
        return {
            "title": "BrainDINO: ViT on axial slices, DINO, iBOT and KoLeo",
            "intensity": INTENSITY,
            "pretraining": [],
            "citation": "BrainDINO, arXiv 2604.27277",
            "source": "https://github.com/mclwu22/BrainDINO",
            "note": "The objectives are the authors'; their numbers DINOv2's, DINOv3's or ours.",
        }


PRETEXT = BrainDINO("braindino", "braindino", {"tiny": TINY, "full": FULL})
