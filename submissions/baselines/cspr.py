"""CSPR's pretraining: a 3D ResNet learns to classify 2D images whose colours became depth.

Recipe as in the authors' configuration for ImageNet: the three channels in random order, always; a
random crop to 224 pixels and a flip; (x - 114.495) / 57.63, the same for all channels, because they
change places; cross-entropy with label smoothing 0.1; SGD at 0.1 with momentum 0.9 and weight decay
1e-4, cosine, 100 epochs of 32 images on each of 8 GPUs. The classifier is dropped; on volumes the
network strides along the depth as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...benchmark.errors import DataError
from ..architectures import cspr as network
from ._images import Drawn, Images, pictures, random_box, resized
from ._pretraining import Objective, Preset, Source

MEAN, SD = 114.495, 57.63
"""Of ImageNet's pixels in [0, 255], over all channels; the authors' configuration."""

SMOOTHING = 0.1
"""Of the labels; the authors' configuration."""

IMAGENET_IMAGES = 1_281_167
"""Of its training side (Russakovsky et al., arXiv 1409.0575)."""

TINY = Preset(
    architecture={"depth_stride": True, "layers": (1, 1, 1, 1), "base_channels": 20},
    shape=(48, 64, 64),
    readout="concat",
    steps=2400,
    batch=32,
    learning_rate=0.0125,  # the authors' 0.1 is for batches of 256
    weight_decay=(1e-4, 1e-4),
    warmup=80,
    clip=5.0,  # ours: few steps at a high rate
    optimizer="sgd",
    betas=(0.9, 0.999),
    # Ours. Area: a shape is seldom recognisable by an eighth of it.
    options={"size": 64, "drawn": 80, "area": (0.35, 1.0), "classes": len(Drawn(80).classes)},
    note="About fifteen minutes on one core.",
)

FULL = Preset(
    architecture={"depth_stride": True},
    shape=(96, 192, 192),
    readout="concat",
    steps=100 * IMAGENET_IMAGES // 256,
    batch=256,  # 8 x 32; divide by the number of processes
    learning_rate=0.1,
    weight_decay=(1e-4, 1e-4),
    warmup=0,
    optimizer="sgd",
    betas=(0.9, 0.999),
    # Area: the usual one of random resized crops (Szegedy et al., arXiv 1409.4842). Drawn: as
    # ImageNet's pictures are before they are cropped.
    options={"size": 224, "drawn": 256, "area": (0.08, 1.0), "classes": 1000},
    # FLOPs counted by torch, forward and backward; the time is the authors'.
    note="94 GFLOP per image, 12 EFLOP in all; the authors' run took 7 days on 8 Titan XP, "
    "1344 GPU hours. Memory unmeasured.",
)


class CSPRObjective(Objective):
    """The network, without stride along the depth, and a linear classifier."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size = preset.options["size"]
        # Three voxels of depth would not outlive strides; the weights have the same shapes.
        arguments = {**preset.architecture, "depth_stride": False}
        self.network = network.build(shape=(3, size, size), channels=1, readout="last", **arguments)
        self.fc = nn.Linear(self.network.width, preset.options["classes"])
        nn.init.normal_(self.fc.weight, std=0.01)  # as the authors' framework does
        nn.init.zeros_(self.fc.bias)

    def loss(self, batch: Any, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of smoothed labels.

        Args:
            batch: images (B, 3, H, W) uint8 and labels (B,) int64.
            progress: not used.
        """
        del progress
        images, labels = batch
        x = network.variable_dimension_transform((images.float() - MEAN) / SD)
        embedding = self.network.embed(x)  # (B, F)
        logits = self.fc(embedding)
        loss = functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        with torch.no_grad():
            measures: dict[str, Any] = {
                "accuracy": (logits.argmax(1) == labels).float().mean(),
                "embedding_std": embedding.float().std(0).mean(),
            }
        return loss, measures

    def parameters_to_train(self) -> list[dict[str, Any]]:
        """All in one group: the authors' SGD decays biases and norms as well."""
        return [{"params": list(self.parameters()), "decay": True}]

    def encoder(self) -> nn.Module:
        """The network without its classifier."""
        return self.network


@dataclass(frozen=True)
class LabelledCrops:
    """Random crops of labelled images."""

    images: Images
    size: int
    area: tuple[float, float]

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """An image (3, size, size) uint8, and its label, int64."""
        image, label = self.images.draw(rng)
        box = random_box(rng, image.shape[0], image.shape[1], self.area)
        image = resized(image, self.size, box)
        if rng.random() < 0.5:
            image = image[:, ::-1]
        image = image[..., rng.permutation(3)]  # the authors shuffle the channels of every image
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(planes), torch.tensor(label)

    def describe(self) -> str:
        """Of the images."""
        return self.images.describe()


ONTO = {"out_low": (0 - MEAN) / SD, "out_high": (255 - MEAN) / SD}
"""Pixels 0 and 255, as in training."""


@dataclass(frozen=True)
class CSPR:
    """The pretext."""

    name: str
    architecture: str
    presets: Mapping[str, Preset]

    def objective(self, preset: Preset) -> CSPRObjective:
        """Network and classifier."""
        return CSPRObjective(preset)

    def source(self, preset: Preset, data: Sequence[Path]) -> Source:
        """Crops of pictures, each class a sub-folder; of drawn images where no folder is given.

        Raises:
            DataError: no pictures, one class alone, or more classes than the preset's.
        """
        options = preset.options
        images: Images = pictures(data, labelled=True) if data else Drawn(options["drawn"])
        if len(images.classes) > options["classes"]:
            raise DataError(
                f"{len(images.classes)} sub-folders, but the classifier of this preset has "
                f"{options['classes']} classes. Give the other preset, or fewer sub-folders."
            )
        return LabelledCrops(images, options["size"], options["area"])

    def card(self, preset: Preset) -> Mapping[str, Any]:
        """What the manifest says beyond what the trainer knows."""
        del preset
        return {
            "title": "CSPR: 3D ResNet, pretrained on 2D images",
            "intensity": {
                # The authors' volumes are windowed to 8 bits; the window is ours: soft tissue.
                "HU": {"type": "Window", "low": -160.0, "high": 240.0, **ONTO},
                "scanner": {"type": "MinMax", **ONTO},
                "relative": {"type": "Window", "low": 0.0, "high": 1.0, **ONTO},
            },
            "pretraining": [],
            "grid": {"axes": "SPL"},
            "citation": "CSPR: cross-supervised pretraining by the variable dimension transform",
            "note": "Weights learnt from 2D images; strides along the depth were added afterwards.",
        }


PRETEXT = CSPR("cspr", "cspr", {"tiny": TINY, "full": FULL})
