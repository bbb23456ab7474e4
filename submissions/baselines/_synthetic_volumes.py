"""Volumes of nobody to pretrain on: anatomix's label maps, seen anew at every draw.

Patients of one cohort look alike, and a few hundred of them are soon known by heart; these differ
as much as wanted, cost no licence and cannot leak into a test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from ...benchmark import intensity, interpolation
from ...benchmark.types import Intensity, Shape
from ..manifest_tables import IntensityTable
from ._synthesis import Dice, few_shapes, label_map
from ._views import view


@dataclass(frozen=True)
class SyntheticVolumes:
    """Label maps of one size, each drawn once; every sample is another view of one of them."""

    shape: Shape
    maps: int
    """Label maps; each takes a byte per voxel once it was drawn (0.15 s of a CPU at 48^3)."""
    alone: float
    """Share of the samples in which a few shapes stand alone, as an organ that was cut out."""
    how: Intensity
    """The card's transform of images in scanner units."""
    _kept: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def of(
        cls, tables: Mapping[str, Any], shape: Shape, maps: int, alone: float
    ) -> SyntheticVolumes:
        """With the ``scanner`` transform of a card's ``intensity``."""
        adapter: TypeAdapter[Any] = TypeAdapter(IntensityTable)
        return cls(shape, maps, alone, adapter.validate_python(tables["scanner"]).as_type())

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """(X, Y, Z) float32, scaled as the model wants it."""
        labels = self._labels(int(rng.integers(self.maps)))
        if self.alone and rng.random() < self.alone:
            labels = few_shapes(labels, rng)
        image = view(Dice(rng), labels.to(torch.int16)).numpy().astype(np.float32)
        interpolation.ramp(image.reshape(-1), *intensity.fit(self.how, image))
        return image

    def describe(self) -> str:
        """For the card."""
        sides = " x ".join(map(str, self.shape))
        alone = f", {self.alone:.0%} of the samples a few shapes of one" if self.alone else ""
        return f"{self.maps} synthetic label maps of {sides} voxels{alone}, each time another view"

    def _labels(self, index: int) -> torch.Tensor:
        """The label map of an index, which is the same in every run; made at its first draw."""
        with self._lock:
            kept = self._kept.get(index)
        if kept is not None:
            return kept
        made = label_map(Dice(np.random.default_rng(index)), self.shape).to(torch.uint8)
        with self._lock:
            return self._kept.setdefault(index, made)
