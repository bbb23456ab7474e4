"""What tests/test_studies.py needs to sweep the study ``survival``: the brighter, the sooner."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tomoprobe.benchmark.targets import FollowUp
from tomoprobe.benchmark.types import Case, EncoderCard, Task, Window

from . import toy
from .study_retrieve import CONSTANT

CARD = replace(
    toy.CARD,
    name="toy_survival",
    title="Time to the event of a cube",
    kind="survival",
    metric="concordance",
    classes=(),
    evidence=False,
)

WIDE = Window(-10, 10, -10, 10)
BRIGHTNESS = replace(toy.ENCODER_CARD, name="toy_brightness", width=1, intensity={"relative": WIDE})

BEST = (0.95, 1.0)
CHANCE = (0.49, 0.51)


def cases() -> Sequence[Case]:
    """Times fall with brightness; a quarter is censored at 0.7 of the time to the event."""
    bright = np.random.default_rng(0).uniform(0, 1, 60)
    made = []
    for i, case in enumerate(toy.cases()):
        years = 5 * float(np.exp(-3 * bright[i]))
        target = FollowUp(0.7 * years, False) if i % 4 == 0 else FollowUp(years, True)
        made.append(replace(toy.case(i, 20 * bright[i], case.split), target=target))
    return made


def task() -> Task:
    return Task(CARD, lambda root: cases())


@dataclass(frozen=True)
class Brightness:
    """Mean of the central cube."""

    card: EncoderCard = BRIGHTNESS
    model_sha: str = "3" * 64
    module: None = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 2:6, 2:6, 2:6].flatten(1).mean(1, keepdim=True)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return []


def oracle() -> Brightness:
    return Brightness()


def trivial() -> toy.Constant:
    return toy.Constant(CONSTANT)
