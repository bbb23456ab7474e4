"""What tests/test_studies.py needs to sweep the study ``retrieve``: three classes of cubes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tomoprobe.benchmark.types import Case, EncoderCard, Task

from . import toy

CLASSES = ("dark", "middle", "bright")
CARD = replace(
    toy.CARD, name="toy_retrieve", title="Cubes of three grades", classes=CLASSES, evidence=False
)

GRADES = replace(toy.ENCODER_CARD, name="toy_grades", width=3)
CONSTANT = replace(toy.ENCODER_CARD, name="toy_constant", width=3)

BEST = (0.99, 1.0)
CHANCE = (0.35, 0.42)
"""A random order of a gallery of 40 scores a little above a third, as the first hit counts."""


def cases() -> Sequence[Case]:
    """Cubes 0, 3 and 6 SDs above the noise in turn."""
    return [
        replace(toy.case(i, 10.0 * (i % 3), c.split), target=i % 3)
        for i, c in enumerate(toy.cases())
    ]


def task() -> Task:
    return Task(CARD, lambda root: cases())


@dataclass(frozen=True)
class Grades:
    """How near the central cube's mean is to each of the three grades."""

    card: EncoderCard = GRADES
    model_sha: str = "1" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        mean = x[:, 0, 2:6, 2:6, 2:6].flatten(1).mean(1, keepdim=True)
        return torch.exp(-((mean - torch.tensor([0.0, 3.0, 4.0])) ** 2))  # clipped at 4

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return []


def oracle() -> Grades:
    return Grades()


def trivial() -> toy.Constant:
    return toy.Constant(CONSTANT)
