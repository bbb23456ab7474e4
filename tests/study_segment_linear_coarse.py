"""What tests/test_studies.py needs to sweep ``segment_linear_coarse``: boxes, at stride 4."""

from dataclasses import replace

from .toy_segmentation import COARSE, Digits, Zeros, task

__all__ = ["BEST", "CHANCE", "oracle", "task", "trivial"]

BEST = (0.85, 1.0)
"""Between its points the labels are interpolated: corners are lost."""
CHANCE = (0.0, 0.3)


def oracle() -> Digits:
    return Digits(COARSE)


def trivial() -> Zeros:
    return Zeros(replace(COARSE, name="toy_coarse_zeros"))
