"""What tests/test_studies.py needs to sweep the study ``segment_linear``: boxes."""

from .toy_segmentation import Digits, Zeros, task

__all__ = ["BEST", "CHANCE", "oracle", "task", "trivial"]

BEST = (0.97, 1.0)
CHANCE = (0.0, 0.3)


def oracle() -> Digits:
    return Digits()


def trivial() -> Zeros:
    return Zeros()
