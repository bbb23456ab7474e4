"""CoralBay's pretraining: DINO on the joined means of the maps at all scales, crops in 3D.

Published: the objective and the embedding. Its numbers were not found; ``full`` takes those that
3DINO (Xu et al., arXiv 2501.11755, and its code) published for volumes. Marked [D]: our choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ..architectures import get
from ._multi_crop import Volumes, crop_3d, jittered, region
from ._pretraining import Preset
from ._self_distillation import Head, SelfDistillation, dino_loss, measures
from ._synthetic_volumes import SyntheticVolumes
from ._volumes import volumes

if TYPE_CHECKING:
    from ..architectures import Network
    from ._pretraining import Source

INTENSITY = {
    "HU": {"type": "Window", "low": -1000.0, "high": 1000.0},  # the authors' card
    "scanner": {"type": "MinMax"},
    "relative": {"type": "Window", "low": 0.0, "high": 1.0},
}

FULL = Preset(
    architecture={},  # as published: feature size 48, window 7, V2, blocks
    shape=(96, 96, 96),
    readout="concat",
    steps=125_000,  # 3DINO: 100 epochs of 1250 steps
    batch=8,  # [D]: what an 80 GB GPU holds; four processes make 32
    learning_rate=1.77e-4,  # for 8; 3DINO: 2e-3 sqrt(batch / 1024)
    weight_decay=(0.04, 0.4),  # 3DINO
    warmup=12_500,  # 3DINO: 10 of 100 epochs
    clip=3.0,  # 3DINO
    options={
        "spacing": (1.5, 1.5, 1.5),  # mm; the authors' card
        # Without data, ours: as many voxels as two crops side by side, more maps than steps see.
        "synthetic": {"shape": (48, 48, 48), "maps": 512, "alone": 0.5},
        "region": (1.0, 1.0),  # of the volume, which the crops are taken of
        "global_size": 96,
        "global_in_slice": (0.48, 1.0),
        "global_cross_slice": (0.5, 1.0),
        "local_size": 48,
        "local_in_slice": (0.16, 0.48),
        "local_cross_slice": (0.2, 0.5),
        "locals": 8,
        "turn": 0.3,
        # 3DINO jitters contrast, sharpness and noise too; these strengths are ours [D].
        "jitter": {"gamma": 0.5, "blur": 1.0, "noise": 0.1},
        "hidden": 2048,
        "bottleneck": 256,
        "prototypes": 65_536,
        "targets": "sinkhorn",  # 3DINO has both
        "student_temperature": 0.1,
        "teacher_temperature": (0.04, 0.07),
        "teacher_warmup": 0.3,  # 30 of 100 epochs
        "momentum": (0.992, 1.0),
        "freeze_last": 0.01,  # 1 of 100 epochs
    },
    # Counted: forward 241 GFLOP at 96^3, 30.6 at 48^3; backward as two forwards; the teacher sees
    # the large crops. Stored for backward: 0.48 GiB at 48^3 in float32. The hours assume a quarter
    # of an H100's 989 TFLOP/s in bfloat16; no run of it was timed.
    note="2.7 TFLOP per sample, 2.7e18 in all: about 3 H100 hours at a quarter of its peak "
    "(computed); about 60 GB of GPU memory (computed).",
)

TINY = Preset(
    architecture={
        "feature_size": 12,
        "num_heads": (1, 2, 4, 8),  # of 12 channels; heads of 4 take three times as long
        "window_size": 4,
        "use_v2": False,  # its instance norm needs more than one voxel at stride 16
        "blocks": False,
    },
    shape=(48, 56, 48),  # as the random copy: an adult head at 4 mm
    readout="concat",
    steps=2400,
    batch=16,
    learning_rate=5e-4,  # [D]: chosen on training patients, over 2e-3 for 800 steps
    weight_decay=(0.04, 0.04),
    warmup=120,
    clip=3.0,
    # [D]. Crops keep the volume's scale, which is that of the card's grid: the size of what is
    # seen tells images apart and stays in the features. Crops of any size, as in 3DINO, teach to
    # overlook it, and were no better than random weights on training patients after 300 steps.
    options={
        **FULL.options,
        "spacing": None,  # each image's own
        "region": (0.667, 0.667),  # 32 of 48 voxels
        "global_size": 24,
        "global_in_slice": (0.5625, 0.5625),  # 24 of 32
        "global_cross_slice": (0.75, 0.75),
        "local_size": 16,
        "local_in_slice": (0.25, 0.25),
        "local_cross_slice": (0.5, 0.5),
        "locals": 2,
        "turn": 0.5,
        "jitter": {"gamma": 0.5, "blur": 0.5, "noise": 0.1},
        "hidden": 256,
        "bottleneck": 64,
        "prototypes": 512,
        "teacher_temperature": (0.04, 0.04),
        "momentum": (0.98, 1.0),  # a teacher that follows within 2400 steps
        "freeze_last": 0.0,
    },
    note="Shows that the objective learns; not the paper's weights.",
)


class CoralBayObjective(SelfDistillation):
    """DINO on the embedding."""

    def __init__(self, preset: Preset) -> None:
        build = get("coralbay").build
        network = build(
            shape=preset.shape, channels=1, readout=preset.readout, **preset.architecture
        )
        sizes = (preset.options[name] for name in ("hidden", "bottleneck", "prototypes"))
        head = Head(network.width, *sizes)
        super().__init__(cast("torch.nn.Module", network), {"dino": head}, preset.options)

    def loss(self, batch: Mapping[str, Tensor], progress: float) -> tuple[Tensor, dict[str, float]]:
        """The DINO loss.

        Args:
            batch: ``global`` (B, T, 1, X, Y, Z) and ``local`` (B, L, 1, x, y, z).
            progress: share of the steps done.
        """
        large, small = (batch[name].transpose(0, 1) for name in ("global", "local"))
        crops, images = large.shape[:2]
        with torch.no_grad():
            embeddings = self._embed(self.teacher, large.flatten(0, 1))  # (T B, D)
            targets = self.targets("dino", embeddings, progress)
        seen = [self._embed(self.student, x.flatten(0, 1)) for x in (large, small)]
        logits = self.student["dino"](torch.cat(seen)).unflatten(0, (-1, images))  # (T + L, B, K)
        loss = dino_loss(
            targets.unflatten(0, (crops, images)), logits, self.options["student_temperature"]
        )
        return loss, measures(embeddings, targets)

    @staticmethod
    def _embed(side: torch.nn.ModuleDict, crops: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) -> (N, D) by the student's or the teacher's network."""
        return cast("Network", side["backbone"]).embed(crops)


@dataclass(frozen=True)
class Crops:
    """Large and small crops of volumes."""

    volumes: Volumes
    options: Mapping[str, Any]

    def sample(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """``global`` (2, 1, X, Y, Z) and ``local`` (L, 1, x, y, z), float32 in about [0, 1]."""
        volume = region(self.volumes.sample(rng), self.options["region"], rng)
        return {
            "global": self._crops(volume, "global", 2, rng),
            "local": self._crops(volume, "local", self.options["locals"], rng),
        }

    def _crops(self, volume: np.ndarray, kind: str, count: int, rng: np.random.Generator) -> Tensor:
        options = self.options
        crops: list[np.ndarray] = []
        for _ in range(count):
            crop = crop_3d(
                volume,
                options[f"{kind}_size"],
                options[f"{kind}_in_slice"],
                options[f"{kind}_cross_slice"],
                rng,
                turn=options["turn"],
            )
            crops.append(jittered(crop, rng, **options["jitter"]))
        return torch.from_numpy(np.stack(crops)[:, None])

    def describe(self) -> str:
        """Of the volumes."""
        return self.volumes.describe()


@dataclass(frozen=True)
class CoralBay:
    """The pretext."""

    name: str
    architecture: str
    presets: Mapping[str, Preset]

    def objective(self, preset: Preset) -> CoralBayObjective:
        """Student, teacher and their heads."""
        return CoralBayObjective(preset)

    def source(self, preset: Preset, data: Sequence[Path]) -> Source:
        """Crops of the given volumes; of synthetic ones where none are given."""
        spacing = preset.options["spacing"]
        if not data:
            seen = SyntheticVolumes.of(INTENSITY, **preset.options["synthetic"])
            return Crops(seen, preset.options)
        return Crops(volumes(data, intensity=INTENSITY, spacing=spacing), preset.options)

    def card(self, preset: Preset) -> Mapping[str, Any]:
        """What the manifest says beyond what the trainer knows."""
        found: dict[str, Any] = {
            "title": "CoralBay: 3D Swin, self-distillation on multi-scale means",
            "intensity": INTENSITY,
            "pretraining": [],
            "citation": "CoralBay, kaiko.ai; Caron et al., Emerging properties in self-supervised "
            "vision transformers, ICCV 2021",
            "source": "https://huggingface.co/kaiko-ai/coralbay",
            "note": "The objective is the authors'; its numbers are 3DINO's or ours.",
        }
        if preset.options["spacing"]:
            found |= {"grid": {"spacing": list(preset.options["spacing"])}, "tiling": "tiles"}
        return found


PRETEXT = CoralBay("coralbay", "coralbay", {"tiny": TINY, "full": FULL})
