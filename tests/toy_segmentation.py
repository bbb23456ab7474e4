"""A segmentation whose answer a network cannot see, but an oracle can: labels in the last digits.

Boxes of two classes at random places. A voxel's value is noise in steps of 0.1, plus its label
times 0.001: convolutions find nothing in that, the oracle takes the digits apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch

from tomoprobe.benchmark.targets import Labels
from tomoprobe.benchmark.types import Case, EncoderCard, Grid, Split, Task, TaskCard, Volume, Window

from . import toy

SIDE = 16

CARD: TaskCard = replace(
    toy.CARD,
    name="toy_boxes",
    title="Two boxes",
    kind="segmentation",
    metric="dice",
    classes=("background", "first", "second"),
    counts={"cases": 15, "patients": 15, "train": 7, "val": 3, "test": 5},
    lattice_mm=(1.0, 1.0, 1.0),
    tolerance_mm=1.0,
    data_set="toy_boxes",
    evidence=False,  # generated: no data root is needed
)

ORACLE = EncoderCard(
    name="toy_digits",
    title="Labels from the last digits",
    grid=Grid((SIDE,) * 3, (1.0, 1.0, 1.0)),
    intensity={"relative": Window(0, 1)},
    width=2,
    strides=(1,),
)
COARSE = replace(ORACLE, name="toy_coarse", strides=(4,))
CONSTANT = replace(ORACLE, name="toy_zeros")


def labels_of(index: int) -> np.ndarray:
    """Two boxes of 8 voxels, at multiples of 4, that do not touch."""
    rng = np.random.default_rng(index)
    labels = np.zeros((SIDE,) * 3, np.int32)
    halves = rng.permutation([0, 8])
    for k, x in enumerate(halves, start=1):
        y, z = rng.integers(0, 3, 2) * 4
        labels[x : x + 8, y : y + 8, z : z + 8] = k
    return labels


def case(index: int, split: Split, labels: np.ndarray | None = None) -> Case:
    """One image; with other labels than those that are drawn, if any are given."""
    drawn = labels_of(index)
    truth = drawn if labels is None else labels
    noise = np.random.default_rng(index + 1000).integers(0, 9, drawn.shape) / 10
    voxels = (noise + 0.001 * drawn + 0.0001)[None].astype(np.float32)
    return Case(
        id=f"boxes{index:03d}",
        patient=f"p{index:03d}",
        target=Labels(lambda: (truth, np.eye(4)), lambda: sha256(truth.tobytes()).hexdigest()),
        load=lambda: Volume(voxels, np.eye(4), "relative"),
        digest=lambda: sha256(voxels.tobytes()).hexdigest(),
        split=split,
    )


def cases() -> list[Case]:
    sides: list[Split] = ["train"] * 7 + ["val"] * 3 + ["test"] * 5
    return [case(i, side) for i, side in enumerate(sides)]


def task() -> Task:
    return Task(CARD, lambda root: cases())


@dataclass(frozen=True)
class Digits:
    """One map per class, 1 where the voxel is of it."""

    card: EncoderCard = ORACLE
    model_sha: str = "a" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2]

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        label = torch.round((x * 10 % 1) * 100 - 0.1).long()[:, 0].clamp(0, 2)
        found = torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
        stride = self.card.strides[0]
        return [torch.nn.functional.avg_pool3d(found, stride)]


@dataclass(frozen=True)
class Zeros:
    """Maps that know nothing."""

    card: EncoderCard = CONSTANT
    model_sha: str = "b" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 2)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return [torch.zeros(len(x), 3, *(n // s for n in x.shape[2:])) for s in self.card.strides]
