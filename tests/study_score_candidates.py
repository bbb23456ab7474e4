"""What tests/test_studies.py needs to sweep ``score_candidates``: the balls of ``study_detect``."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tomoprobe.benchmark.targets import Suspects
from tomoprobe.benchmark.types import Case, Task

from . import study_detect
from .study_detect import oracle, trivial

__all__ = ["BEST", "CHANCE", "oracle", "task", "trivial"]

CARD = replace(study_detect.CARD, name="toy_candidates", title="Marked balls", kind="candidates")

BEST = (0.95, 1.0)
CHANCE = (0.2, 0.42)
"""In random order, of about 7 wrong marks per image the rates 1/8 to 4 let through r / 7, and 8
all: 0.31 on average, with a standard error of 0.05 (22 balls)."""

MARKS = 8


def marked(case: Case, index: int) -> Case:
    """A mark within each ball, and others anywhere that is not in one."""
    rng = np.random.default_rng([index, 1])
    lesions = study_detect.lesions(case)
    places = [np.array(lesion.center) + rng.uniform(-0.5, 0.5, 3) for lesion in lesions]
    while len(places) < MARKS:
        place = rng.uniform(4, study_detect.SIZE - 5, 3) - 10
        if all(np.linalg.norm(place - lesion.center) > 4 for lesion in lesions):
            places.append(place)
    order = rng.permutation(MARKS)
    marks = tuple((float(x), float(y), float(z)) for x, y, z in (places[i] for i in order))
    return replace(case, target=Suspects(lesions, marks))


def cases() -> Sequence[Case]:
    return [marked(case, index) for index, case in enumerate(study_detect.cases())]


def task() -> Task:
    return Task(CARD, lambda root: cases())
