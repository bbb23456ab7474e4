"""anatomix's pretraining: voxel-wise supervised contrast between two views of synthetic label maps.

No image is ever seen: `_synthesis` makes the label maps, `_views` the images. Numbers are those of
Dey et al. (ICLR 2025) as in the authors' repository (neel-dey/anatomix a29b8a8) unless marked [D],
which is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from torch import Tensor, nn

from ...benchmark.types import Shape
from ..architectures import anatomix as architecture
from ._contact_sheet import Sample, contact_sheet
from ._contrast import (
    contrast_invariance,
    drawn_positions,
    features_at,
    labels_at,
    projector,
    supervised_contrast,
)
from ._pretraining import Objective, Preset, Source
from ._shown import Shown
from ._synthesis import SHAPES, Dice, few_shapes, label_map, shape_count
from ._templates import Templates
from ._views import view

FULL = Preset(
    architecture={},  # as published: width 16, 4 downs, 16 channels
    shape=(128, 128, 128),
    readout="relu",
    steps=600_000,
    batch=1,  # a pair
    learning_rate=2e-4,
    weight_decay=(1e-5, 1e-5),
    warmup=0,
    schedule="linear",
    options={
        "grid": (128, 128, 128),  # of a label map
        "positions": 512,  # per layer, the same in both views
        "temperature": 0.33,
        "projector_width": 256,
        "projector_layers": 3,
        "cube": None,  # voxels of a view's side; None: each shows the whole map, see TINY
        "masks": 0.0,  # share of the pairs in which one view is a mask, see TINY
        # True: label maps are made by the objective, on its device, so that a GPU is not kept
        # waiting by processors (one thread takes seconds for a map of 128^3) [D].
        "labels_on_device": True,
    },
    note=(
        "347 GFLOP per volume forward, 2.1 TFLOP per pair with the backward pass, 1.25 EFLOP in "
        "all: 12 GPU hours at 30 TFLOP/s, a rate assumed for thin 3D convolutions and not "
        "measured. About 6 GB in bf16, counted from the activations. The authors train on 120,000 "
        "pairs made beforehand; here every step sees a new one."
    ),
)

TINY = Preset(
    architecture={"width": 8},
    # The network has no fixed size. Trained on 32^3, but read on more: at the borders of a tile the
    # maps are worse, and a field of view of 44 x 60 x 48 mm fits one at 1 mm [D].
    shape=(48, 64, 48),
    readout="relu",
    # [D]: after 1000 steps maps were better and vectors worse on training patients, in sum level
    # (docs/baselines.md).
    steps=300,
    # [D]: of one pair the coarsest layer has 16 voxels for its batch norm, and 100 such steps do
    # not lead below the loss of a constant embedding (5.53, held out); 100 of four pairs do (5.37).
    batch=4,
    learning_rate=2e-3,  # [D]: the authors' rate is for 2000 times as many steps
    weight_decay=(1e-5, 1e-5),
    warmup=50,  # [D]
    schedule="linear",
    options={
        **FULL.options,
        "grid": (48, 48, 48),
        "labels_on_device": False,
        # [D]: both views show one geometry, so that where a voxel is in its tile tells its label;
        # on 32^3 even the finest layer sees the borders of the tile and learns that first. Views of
        # two cubes of the map, the second turned, leave no such way out.
        "cube": 32,
        # [D]: some of the benchmark's images are masks, and the engine makes none.
        "masks": 0.25,
    },
    note="Ten minutes on one core, at half the width and a quarter of the resolution; not the "
    "paper's weights.",
)


class AnatomixObjective(Objective):
    """The loss in six layers, each with a projector of its own."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.options = preset.options
        self.network = architecture.build(
            shape=preset.shape, channels=1, readout=preset.readout, **preset.architecture
        )
        self.layers = self.network.contrasted
        width, layers = self.options["projector_width"], self.options["projector_layers"]
        self.projectors = nn.ModuleList(
            projector(channels(self.network, number), width, layers) for number in self.layers
        )

    def encoder(self) -> nn.Module:
        """The whole UNet, without the projectors."""
        return self.network

    def loss(self, batch: Mapping[str, Tensor], progress: float) -> tuple[Tensor, dict[str, float]]:
        """The contrast, averaged over layers and samples.

        Args:
            batch: of `Pairs`: ``seed`` (B,) and, unless the label maps are made here, ``labels``
                (B, X, Y, Z); with ``templates`` (B, n, X, Y, Z) and ``count`` (B,) they are made
                here from those.
            progress: not used.

        Returns:
            A scalar; and how the output's channels agree between the views (`contrast_invariance`).
        """
        device = next(self.parameters()).device
        labels, images = self.pairs(batch, device)
        samples = len(labels)
        grid, cube = self.options["grid"], self.options["cube"]
        coarsest = self.network.strides[-1]
        shown = Shown.drawn(grid, cube, coarsest) if cube else Shown.whole(grid)
        labels = shown.shared_labels(labels)
        found = self.network.run(shown.images(images), set(self.layers))
        losses: list[Tensor] = []
        measures: dict[str, float] = {}
        for number, project in zip(self.layers, self.projectors, strict=True):
            maps = shown.shared(found[number])
            positions = drawn_positions(maps.shape[2:], self.options["positions"], device)
            classes = labels_at(labels, maps.shape[2:], positions)  # (B, n)
            features = features_at(maps, positions)  # (2 B, n, C), the views of a sample together
            projected = project(features.flatten(0, 1)).unflatten(0, (samples, -1))
            losses += [
                supervised_contrast(x, y.repeat(2), self.options["temperature"])
                for x, y in zip(projected, classes, strict=True)
            ]
            if number == self.network.last:
                measures = contrast_invariance(features[0], features[1], classes[0])
        return torch.stack(losses).mean(), measures

    @torch.no_grad()
    def pairs(self, batch: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Label maps (B, X, Y, Z) and two views of each (B, 2, 1, X, Y, Z), on the device."""
        maps: list[Tensor] = []
        images: list[Tensor] = []
        with torch.autocast(device.type, enabled=False):  # counts and spectra need all digits
            for i, seed in enumerate(batch["seed"].tolist()):
                dice = Dice(np.random.default_rng(seed), device)
                if "labels" in batch:
                    labels = batch["labels"][i]
                else:
                    templates = None
                    if "templates" in batch:
                        templates = batch["templates"][i, : int(batch["count"][i])]
                    labels = label_map(dice, self.options["grid"], templates)
                labels, views = self._seen(dice, labels)
                maps.append(labels)
                images.append(torch.stack(views)[:, None])
        return torch.stack(maps), torch.stack(images)

    def _seen(self, dice: Dice, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A label map, or a few of its shapes, and two views of it, of which one may be a mask."""
        share = self.options["masks"]
        if not share or not dice.happens(share):
            return labels, [view(dice, labels) for _ in range(2)]
        shapes = few_shapes(labels, dice.rng)
        views = [view(dice, shapes), (shapes > 0).float()]
        if dice.happens(0.5):
            views.reverse()
        return shapes, views


def channels(network: architecture.AnatomixUNet, number: int) -> int:
    """Of the output of a convolution of the network."""
    module = network.model[number]
    assert isinstance(module, nn.Conv3d)  # noqa: S101  # the loss reads convolutions only
    return module.out_channels


@dataclass(frozen=True)
class Pairs:
    """Label maps, or what they are made of, and the seed of their views."""

    grid: Shape
    labels_on_device: bool
    templates: Templates | None

    def sample(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """``seed`` and ``labels`` (X, Y, Z) int16; on the device: ``seed`` and any templates.

        Templates are (39, X, Y, Z) uint8, of which the first ``count`` are meant.
        """
        seed = torch.tensor(int(rng.integers(2**62)))
        drawn: Tensor | None = None
        if self.templates is not None:
            count = shape_count(rng)
            drawn = torch.from_numpy(np.stack([self.templates.draw(rng) for _ in range(count)]))
        if not self.labels_on_device:
            return {"labels": label_map(Dice(rng), self.grid, drawn), "seed": seed}
        if drawn is None:
            return {"seed": seed}
        padded = torch.zeros((SHAPES[1], *self.grid), dtype=torch.uint8)
        padded[: len(drawn)] = drawn
        return {"templates": padded, "count": torch.tensor(len(drawn)), "seed": seed}

    def describe(self) -> str:
        """What the shapes are."""
        size = " x ".join(map(str, self.grid))
        shapes = (
            "procedural shapes"
            if self.templates is None
            else f"shapes from {len(self.templates.files)} masks"
        )
        return f"synthetic label maps of {size} voxels, made of {shapes}, in two views each"


@dataclass(frozen=True)
class Anatomix:
    """The pretext task."""

    name: str
    architecture: str
    presets: Mapping[str, Preset]

    def objective(self, preset: Preset) -> AnatomixObjective:
        """The network with its six projectors."""
        return AnatomixObjective(preset)

    def source(self, preset: Preset, data: Sequence[Path]) -> Source:
        """Synthetic pairs.

        Args:
            preset: tells the grid, and where label maps are made.
            data: folders of binary masks as NIfTI; none: procedural shapes.

        Raises:
            MaskError: folders without masks.
        """
        grid = preset.options["grid"]
        templates = Templates(data, grid) if data else None
        return Pairs(grid, preset.options["labels_on_device"], templates)

    def card(self, preset: Preset) -> Mapping[str, Any]:
        """Minimum and maximum to [0, 1]; CT within +-450 HU, as the authors register CT to MR."""
        return {
            "title": "anatomix: 3D UNet, contrast between synthetic views",
            "intensity": {
                "HU": {"type": "Window", "low": -450.0, "high": 450.0},
                "scanner": {"type": "MinMax"},
                "relative": {"type": "Window", "low": 0.0, "high": 1.0},
            },
            "pretraining": [],
            "citation": "Dey et al., Learning general-purpose biomedical volume representations "
            "using randomized synthesis, ICLR 2025",
            "source": "https://github.com/neel-dey/anatomix",
            "note": "Trained on synthetic shapes alone: no image of a patient.",
        }


PRETEXT = Anatomix("anatomix", "anatomix", {"tiny": TINY, "full": FULL})


def write_samples(
    n: int,
    out: Path,
    shape: Shape,
    seed: int,
    data: Sequence[Path] = (),
    device: torch.device | str = "cpu",
) -> list[Path]:
    """Write label maps with two views of each, and one picture of all.

    Args:
        n: how many label maps.
        out: folder, made if it is not there; files of these names are replaced.
        shape: X, Y, Z, each at least 16.
        seed: of all; sample i is the same whatever ``n``.
        data: folders of binary masks to take shapes from; none: procedural shapes.
        device: where they are made; a GPU makes other samples of the same seed.

    Returns:
        ``labels_000.nii.gz``, ``view1_000.nii.gz``, ``view2_000.nii.gz``, ...; and
        ``contact_sheet.png``. Voxels are 1 mm.

    Raises:
        MaskError: folders without usable masks.
        ValueError: no samples, or a shape that is too small.
    """
    if n < 1 or min(shape) < 16:
        raise ValueError(f"{n} samples of shape {shape}: expected 1 or more, of sides from 16 on.")
    templates = Templates(data, shape) if data else None
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    samples: list[Sample] = []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        drawn = None
        if templates is not None:
            masks = [templates.draw(rng) for _ in range(shape_count(rng))]
            drawn = torch.from_numpy(np.stack(masks)).to(device)
        dice = Dice(rng, device)
        labels = label_map(dice, shape, drawn)
        views = (view(dice, labels).cpu().numpy(), view(dice, labels).cpu().numpy())
        samples.append(Sample(labels.cpu().numpy(), views))
        named = {"labels": samples[-1].labels, "view1": views[0], "view2": views[1]}
        for name, array in named.items():
            file = out / f"{name}_{i:03d}.nii.gz"
            Nifti1Image(array, np.eye(4)).to_filename(file)
            written.append(file)
    sheet = out / "contact_sheet.png"
    contact_sheet(samples).save(sheet)
    return [*written, sheet]
