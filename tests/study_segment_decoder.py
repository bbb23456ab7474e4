"""What tests/test_studies.py needs to sweep the study ``segment_decoder``: boxes, a short run."""

from tomoprobe.benchmark.probes.segment_decoder import Recipe, SegmentDecoder

from .toy_segmentation import Digits, Zeros, task

__all__ = ["BEST", "CHANCE", "oracle", "study", "task", "trivial"]

BEST = (0.9, 1.0)
CHANCE = (0.0, 0.25)
"""The decoder sees the image, which tells it nothing, so it can give one label map for all: the
training boxes' most frequent label wherever one class has at least 20 % has 0.17."""


def study() -> SegmentDecoder:
    """The study, trained on small crops for a moment."""
    return SegmentDecoder(recipe=Recipe(steps=40, crop=16, checkpoints=2, seeds=1))


def oracle() -> Digits:
    return Digits()


def trivial() -> Zeros:
    return Zeros()
