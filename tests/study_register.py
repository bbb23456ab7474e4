"""A small registration: blobs, of which one image is the other, smoothly deformed."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import torch
from scipy import ndimage

from tomoprobe.benchmark.features import FrozenEncoder
from tomoprobe.benchmark.targets import Labels, Pair
from tomoprobe.benchmark.types import Case, Grid, Task, TaskCard, Volume

from .toy import ENCODER_CARD, ToyEncoder

SHAPE = (20, 22, 18)
PAIRS = 4

BEST = (0.0, 0.5)
CHANCE = (1.3, 4.0)
"""End-point error in voxels of 1 mm: the deformation moves by 2 mm on average."""

CARD = TaskCard(
    name="toy_pairs",
    version=1,
    title="Blobs onto blobs",
    kind="registration",
    modality="MR",
    anatomy="none",
    metric="epe",
    license="CC0-1.0",
    source="generated in the test",
    citation="none",
    counts={"cases": PAIRS, "patients": PAIRS, "test": PAIRS},
    classes=("background", "blob"),
    lattice_mm=(1.0, 1.0, 1.0),
    data_set="toy_pairs",
    evidence=False,
)


def blobs(seed: int) -> np.ndarray:
    """Smooth noise in [0, 1], float32, larger than the images by 8 voxels on each side."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=[n + 16 for n in SHAPE]), 1.5)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def motion(seed: int) -> np.ndarray:
    """(3, *SHAPE) voxels: a shift and a smooth wave."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE).astype(float)
    shift = rng.choice([-1.0, 1.0], 3) * rng.uniform(0.8, 1.6, 3)
    wave = [np.sin(grid[(a + 1) % 3] / 5 + rng.uniform(0, 6)) * 0.6 for a in range(3)]
    return shift[:, None, None, None] + np.stack(wave)


def pair(index: int) -> Case:
    """The fixed image shows at x what the moving one shows at x + u(x)."""
    whole, moves = blobs(index), motion(index)
    moving = whole[8:-8, 8:-8, 8:-8]
    at = np.indices(SHAPE) + 8 + moves
    fixed = ndimage.map_coordinates(whole, at, order=1)

    def volume(voxels: np.ndarray) -> Volume:
        return Volume(voxels[None].astype(np.float32), np.eye(4), "relative")

    def labels(voxels: np.ndarray) -> Labels:
        mask = (voxels > 0.6).astype(np.int32)
        return Labels(lambda: (mask, np.eye(4)), lambda: sha256(mask.tobytes()).hexdigest())

    target = Pair(
        lambda: volume(moving),
        lambda: sha256(moving.tobytes()).hexdigest(),
        labels(fixed),
        labels(moving),
        lambda: moves,
    )
    name = f"pair{index}"
    digest = sha256(fixed.tobytes()).hexdigest()
    return Case(name, name, target, lambda: volume(fixed), lambda: digest, "test")


def task() -> Task:
    """Four pairs, all tested."""
    return Task(CARD, lambda root: [pair(index) for index in range(PAIRS)])


class Dense(ToyEncoder):
    """The image as its own map; or one constant."""

    def __init__(self, name: str, constant: bool) -> None:
        super().__init__()
        grid = Grid(SHAPE, (1.0, 1.0, 1.0))
        self.card = replace(ENCODER_CARD, name=name, grid=grid, strides=(1,))
        self.constant = constant

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.ones_like(x) if self.constant else x]


def oracle() -> FrozenEncoder:
    """One modality without noise: the image says where it is."""
    return Dense("toy_image", constant=False)


def trivial() -> FrozenEncoder:
    """Constant: the identity."""
    return Dense("toy_constant", constant=True)
