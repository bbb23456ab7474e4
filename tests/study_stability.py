"""What tests/test_studies.py needs to sweep the study ``stability``: balls of many sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import torch

from tomoprobe.benchmark.types import Case, EncoderCard, Task

from .study_shift import CARD as SHIFT_CARD
from .study_shift import SIZE, Size, ball

CARD = replace(SHIFT_CARD, name="toy_stability", title="Who is who")
NOISE = replace(SIZE, name="toy_noise", width=16)

BEST = (0.9, 1.0)
CHANCE = (-0.1, 0.1)


def cases() -> list[Case]:
    """The balls of ``shift``, of 2 to 6 mm."""
    sides = ["train"] * 12 + ["val"] * 8 + ["test"] * 16
    return [ball(i, bool(i % 2), side, 1.0) for i, side in enumerate(sides)]


def task() -> Task:
    return Task(CARD, lambda root: cases())


@dataclass(frozen=True)
class Noise:
    """Other numbers for every image, however alike: nothing of a scan is kept by its shift."""

    card: EncoderCard = NOISE
    model_sha: str = "2" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        rows = []
        for image in x:
            seed = int.from_bytes(sha256(image.numpy().tobytes()).digest()[:7], "big")
            rows.append(torch.randn(16, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return []


def oracle() -> Size:
    """The size of a ball is hardly changed by any shift."""
    return Size()


def trivial() -> Noise:
    return Noise()
