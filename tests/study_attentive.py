"""What tests/test_studies.py needs to sweep the study ``attentive``: one bright corner or none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch
from torch.nn.functional import avg_pool3d

from tomoprobe.benchmark.types import Case, EncoderCard, Grid, Task, Volume

from . import toy

CARD = replace(
    toy.CARD,
    name="toy_attentive",
    title="A bright corner somewhere, or none",
    classes=("none", "bright"),
    counts={"cases": 100, "patients": 100, "train": 50, "val": 20, "test": 30},
    evidence=False,
)
MAPS = replace(
    toy.ENCODER_CARD,
    name="toy_corners",
    grid=Grid((8, 8, 8), (1.0, 1.0, 1.0)),
    width=2,
    strides=(4,),
)
BLIND = replace(MAPS, name="toy_blind")

BEST = (0.97, 1.0)
CHANCE = (0.5, 0.5)


def corner(
    index: int, bright: bool, split: str | None = "train", even: bool = True
) -> tuple[Case, int]:
    """Noise of SD 1, with 2 more in one of eight corners, or 1/4 in each if ``even``."""
    rng = np.random.default_rng(index)
    voxels = rng.normal(size=(1, 8, 8, 8)).astype(np.float32)
    where = int(rng.integers(8))
    if bright:
        x, y, z = (4 * int(i) for i in np.unravel_index(where, (2, 2, 2)))
        voxels[:, x : x + 4, y : y + 4, z : z + 4] += 2
    elif even:
        voxels += 2 / 8
    volume = Volume(voxels, np.eye(4), "relative")
    made = Case(
        id=f"corner{index:03d}",
        patient=f"p{index:03d}",
        target=int(bright),
        load=lambda: volume,
        digest=lambda: sha256(voxels.tobytes()).hexdigest(),
        split=split,  # type: ignore[arg-type]
    )
    return made, where


def cases() -> list[Case]:
    sides = ["train"] * 50 + ["val"] * 20 + ["test"] * 30
    return [corner(i, bool(i % 2), side)[0] for i, side in enumerate(sides)]


def task() -> Task:
    return Task(CARD, lambda root: cases())


@dataclass(frozen=True)
class Corners:
    """The mean of each corner. Their mean over the image is the same for both classes."""

    card: EncoderCard = MAPS
    model_sha: str = "1" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.maps(x)[0].mean((2, 3, 4))

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        mean = avg_pool3d(x, 4)
        return [torch.cat([mean, -mean], 1)]


@dataclass(frozen=True)
class Blind:
    """The same maps for every image."""

    card: EncoderCard = BLIND
    model_sha: str = "2" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), 2)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return [torch.ones(len(x), 2, 2, 2, 2)]


def oracle() -> Corners:
    return Corners()


def trivial() -> Blind:
    return Blind()
