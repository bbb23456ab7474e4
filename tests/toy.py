"""A task and encoders small enough for a test, run through the true spine."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
import torch

from tomoprobe.benchmark.types import (
    Case,
    EncoderCard,
    Grid,
    MinMax,
    Task,
    TaskCard,
    Volume,
    Window,
)

CARD = TaskCard(
    name="toy",
    version=1,
    title="Bright or dark cube",
    kind="classification",
    modality="MR",
    anatomy="none",
    metric="auroc",
    license="CC0-1.0",
    source="generated in the test",
    citation="none",
    counts={"cases": 60, "patients": 60, "train": 30, "val": 10, "test": 20},
    classes=("dark", "bright"),
    data_set="toy",
)


def case(
    index: int, target: float = 0, split: str | None = "train", patient: str | None = None
) -> Case:
    """An 8x8x8 volume at 1 mm: noise, plus 1 where the target is 1."""
    voxels = np.random.default_rng(index).normal(size=(1, 8, 8, 8)).astype(np.float32)
    voxels[:, 2:6, 2:6, 2:6] += 0.3 * float(target)
    volume = Volume(voxels, np.eye(4), "relative")
    return Case(
        id=f"case{index:03d}",
        patient=patient or f"p{index:03d}",
        target=target,
        load=lambda: volume,
        digest=lambda: sha256(voxels.tobytes()).hexdigest(),
        split=split,  # type: ignore[arg-type]
    )


def cases(card: TaskCard = CARD) -> list[Case]:
    """60 cases of alternating class: 30 train, 10 val, 20 test (or none, for cross-validation)."""
    sides = ["train"] * 30 + ["val"] * 10 + ["test"] * 20
    made = [case(i, i % 2, side) for i, side in enumerate(sides)]
    if "test" not in card.counts:
        made = [replace(c, split=None) for c in made]
    return made


TOY = Task(CARD, lambda root: cases())

ENCODER_CARD = EncoderCard(
    name="toy_mean",
    title="Mean and SD of the central cube",
    grid=Grid((8, 8, 8), (1.0, 1.0, 1.0)),
    intensity={"relative": Window(-4, 4, -4, 4), "scanner": MinMax()},
    width=2,
)


@dataclass
class ToyEncoder:
    """Mean and SD; counts the volumes that it has seen."""

    card: EncoderCard = ENCODER_CARD
    model_sha: str = "0" * 64
    module: torch.nn.Module | None = None
    manifest: dict = field(default_factory=lambda: {"architecture": "toy"})
    seen: int = 0

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        inner = x[:, 0, 2:6, 2:6, 2:6].flatten(1)
        return torch.stack([inner.mean(1), inner.std(1)], dim=1)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return []


@dataclass(frozen=True)
class Constant:
    """The same embedding for every image: nothing is nearer than anything else."""

    card: EncoderCard
    model_sha: str = "2" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), self.card.width)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return []
