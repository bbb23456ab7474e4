"""What tests/test_studies.py needs to sweep the study ``detect``: bright balls in noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch

from tomoprobe.benchmark.targets import Lesion
from tomoprobe.benchmark.types import Case, EncoderCard, Grid, Task, Volume, Window

from . import toy

SIZE = 24
SIDES = ("train",) * 14 + ("val",) * 6 + ("test",) * 20
CARD = replace(
    toy.CARD,
    name="toy_detect",
    title="Bright balls",
    kind="detection",
    metric="cpm",
    classes=(),
    counts={"cases": 40, "patients": 40, "train": 14, "val": 6, "test": 20},
    data_set="toy_detect",
    lattice_mm=(2.0, 2.0, 2.0),
    evidence=False,
)

BEST = (0.95, 1.0)
CHANCE = (0.0, 0.2)
"""A ball is hit from 3.5 mm, and a cube of 24 mm holds 77 of them: a guess hardly finds one."""


def case(index: int, side: str) -> Case:
    """One or two balls of 3 mm radius in a cube of 24 mm, or none in every fifth."""
    rng = np.random.default_rng(index)
    voxels = rng.normal(size=(SIZE, SIZE, SIZE)).astype(np.float32)
    grid = np.indices(voxels.shape)
    lesions = []
    for _ in range(0 if index % 5 == 0 else 1 + index % 2):
        center = rng.uniform(4, SIZE - 5, 3)
        voxels[((grid - center[:, None, None, None]) ** 2).sum(0) <= 9] += 6
        x, y, z = (center - 10).tolist()  # the affine below
        lesions.append(Lesion((x, y, z), 6.0))
    affine = np.eye(4)
    affine[:3, 3] = -10
    volume = Volume(voxels[None], affine, "relative")
    return Case(
        id=f"case{index:03d}",
        patient=f"p{index:03d}",
        target=tuple(lesions),
        load=lambda: volume,
        digest=lambda: sha256(voxels.tobytes()).hexdigest(),
        split=side,  # type: ignore[arg-type]
    )


def lesions(of: Case) -> tuple[Lesion, ...]:
    assert isinstance(of.target, tuple)
    return tuple(lesion for lesion in of.target if isinstance(lesion, Lesion))


def cases() -> Sequence[Case]:
    return [case(i, side) for i, side in enumerate(SIDES)]


def task() -> Task:
    return Task(CARD, lambda root: cases())


ENCODER_CARD = replace(
    toy.ENCODER_CARD,
    name="toy_smooth",
    grid=Grid((16, 16, 16), (1.0, 1.0, 1.0)),
    intensity={"relative": Window(-20, 20, -20, 20)},
    strides=(1,),
)


CONSTANT_CARD = replace(ENCODER_CARD, name="toy_constant")


@dataclass(frozen=True)
class Smooth:
    """The image, averaged over a neighbourhood as large as a ball."""

    card: EncoderCard = ENCODER_CARD
    model_sha: str = "1" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), 2)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return [torch.nn.functional.avg_pool3d(x, 5, 1, 2, count_include_pad=False)]


@dataclass(frozen=True)
class Constant:
    """Maps that do not depend on the image."""

    card: EncoderCard = CONSTANT_CARD
    model_sha: str = "2" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), 2)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return [torch.ones_like(x)]


def oracle() -> Smooth:
    return Smooth()


def trivial() -> Constant:
    return Constant()
