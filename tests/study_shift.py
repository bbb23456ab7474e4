"""What tests/test_studies.py needs to sweep the study ``shift``: small and large balls."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch

from tomoprobe.benchmark.types import Case, EncoderCard, Grid, Task, Volume, Window

from . import toy

CARD = replace(
    toy.CARD,
    name="toy_shift",
    title="Small or large ball",
    classes=("small", "large"),
    counts={"cases": 36, "patients": 36, "train": 12, "val": 8, "test": 16},
    evidence=False,
)

SIZE = replace(
    toy.ENCODER_CARD,
    name="toy_size",
    grid=Grid((16, 16, 16), (1.0, 1.0, 1.0)),
    intensity={"relative": Window(0, 1)},
    width=2,
)
CONSTANT = replace(SIZE, name="toy_constant")

BEST = (0.95, 1.0)
CHANCE = (0.0, 0.0)
"""A constant has nothing to keep."""


def ball(index: int, large: bool, split: str | None = "train", spread: float = 0.5) -> Case:
    """A ball of 5 or 3 mm radius, give or take ``spread``, off the center, at 1 mm."""
    rng = np.random.default_rng(index)
    radius = (5.0 if large else 3.0) + rng.uniform(-spread, spread)
    axes = np.meshgrid(*[np.arange(16) - 7.5 + rng.uniform(-1, 1) for _ in range(3)], indexing="ij")
    inside = sum(a**2 for a in axes) < radius**2
    voxels = (0.2 + 0.5 * inside + 0.02 * rng.random(inside.shape))[None].astype(np.float32)
    volume = Volume(voxels, np.eye(4), "relative")
    return Case(
        id=f"ball{index:03d}",
        patient=f"p{index:03d}",
        target=int(large),
        load=lambda: volume,
        digest=lambda: sha256(voxels.tobytes()).hexdigest(),
        split=split,  # type: ignore[arg-type]
    )


def cases() -> list[Case]:
    sides = ["train"] * 12 + ["val"] * 8 + ["test"] * 16
    return [ball(i, bool(i % 2), side) for i, side in enumerate(sides)]


def task() -> Task:
    return Task(CARD, lambda root: cases())


@dataclass(frozen=True)
class Size:
    """Share of the voxels above the middle of the image's ends, twice."""

    card: EncoderCard = SIZE
    model_sha: str = "1" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        values = x.flatten(1)
        middle = (values.amin(1, keepdim=True) + values.amax(1, keepdim=True)) / 2
        share = (values > middle).float().mean(1)
        return torch.stack([share, share.sqrt()], 1)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return []


def oracle() -> Size:
    return Size()


def trivial() -> toy.Constant:
    return toy.Constant(CONSTANT)
