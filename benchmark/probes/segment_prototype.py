"""Few-shot segmentation without training: the nearest class prototype, by cosine.

From K volumes with their labels comes one vector per class: the mean feature of its voxels. Each
voxel of a test image takes the class whose vector is nearest in direction (Snell, Swersky & Zemel,
Prototypical networks for few-shot learning, NeurIPS 2017; by masked averaging and cosine as in Wang
et al., PANet, ICCV 2019). Nothing is trained and nothing is chosen: val is never read.

The features of a voxel: of each level the components of the K volumes (see ``_components``), minus
the mean over classes of their mean, scaled to length 1, so that every level has one vote; then all
levels one after the other. They are made on each level's own lattice, and similarities are what is
brought to the task's lattice, which is the same as interpolating the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..budgets import plan
from ..errors import ProbeError
from ..predictions import HEADLINE
from ..studies import Setting
from ..types import Answer, Budget, Kind
from ._components import Components
from ._segmentation import Fit, Points, Ticks, answers, levels_of, points_of
from ._training import directions

if TYPE_CHECKING:
    import pandas as pd

    from ..dense import Pyramid
    from ..dense_cache import Pyramids

BUDGET = Budget("patients per class", (1, 3, 5), draws=5)
"""A segmentation's volumes are of one class."""

POINTS = 4_000
"""Per volume: all of most structures, and a weighted part of the background."""


@dataclass(frozen=True)
class Prototypes:
    """One direction per class, in the features of all levels."""

    components: tuple[Components, ...]
    centers: tuple[np.ndarray, ...]
    """(k_l,) of each level: the middle between the classes."""
    directions: tuple[np.ndarray, ...]
    """(K, k_l) of each level; a class's, of all levels together, has length 1."""
    absent: np.ndarray
    """(K,) bool: none of the volumes has the class."""

    def __call__(self, pyramid: Pyramid) -> np.ndarray:
        """(K, *lattice.shape) float32 similarities; a class that was not seen never wins."""
        levels = []
        for i, level in enumerate(pyramid.levels):
            features = self.components[i].field(level.values)
            shape = features.shape[1:]
            flat = _unit(features.reshape(len(features), -1).T - self.centers[i])
            values = (self.directions[i].astype(np.float32) @ flat.T).reshape(-1, *shape)
            levels.append(replace(level, values=values))
        reduced = replace(pyramid, levels=tuple(levels))
        total = reduced.full(0)
        for i in range(1, len(levels)):
            total = total + reduced.full(i)
        total[self.absent] = -np.inf
        return total


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows (n, k) of length 1, float32; rows of zeros stay."""
    return directions(x).astype(np.float32)


def prototypes(
    channels: Sequence[Sequence[np.ndarray]], points: Sequence[Points], n_classes: int
) -> Prototypes:
    """From the points of a few volumes.

    Args:
        channels: per volume, per level, (P, C_l).
        points: of each volume.
        n_classes: K.
    """
    label = np.concatenate([one.label for one in points])
    weight = np.concatenate([one.weight for one in points])
    present = np.flatnonzero(np.bincount(label, minlength=n_classes))
    components, centers, means = [], [], []
    for level in range(len(channels[0])):
        parts = [volume[level] for volume in channels]
        components.append(Components.fit(parts))
        x = np.concatenate([components[-1].apply(part) for part in parts]).astype(np.float64)
        centers.append(_means(x, label, weight, n_classes)[present].mean(0))
        means.append(_means(_unit(x - centers[-1]), label, weight, n_classes))
    length = np.sqrt(sum((mean**2).sum(1) for mean in means))[:, None]
    directions = tuple(mean / np.where(length > 0, length, 1) for mean in means)
    absent = ~np.isin(np.arange(n_classes), present)
    return Prototypes(tuple(components), tuple(centers), directions, absent)


def _means(x: np.ndarray, label: np.ndarray, weight: np.ndarray, n_classes: int) -> np.ndarray:
    """(K, k) weighted means of the rows of each class; 0 for a class without rows."""
    out = np.zeros((n_classes, x.shape[1]))
    for k in range(n_classes):
        rows = label == k
        if rows.any():
            out[k] = np.average(x[rows], axis=0, weights=weight[rows])
    return out


@dataclass(frozen=True)
class SegmentPrototype:
    """The nearest class prototype from 1, 3 and 5 volumes; ``repeat`` is the draw."""

    name: str = "segment_prototype"
    title: str = "Nearest class prototype by cosine, from 1, 3 and 5 volumes"
    version: int = 1
    kinds: tuple[Kind, ...] = ("segmentation",)
    answers: Answer = "segmentation"
    budget: Budget = BUDGET
    cost: str = (
        "Nothing is trained; 15 predictions per test case, each less than 1 s on a CPU; not "
        "measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """See ``Study.run``."""
        import pandas as pd

        from ..dense_cache import Pyramids

        planned = plan(setting.card, setting.cases, self.budget)
        if not planned.supports:
            raise ProbeError(
                f"'{self.name}' cannot be fitted on '{setting.card.name}': "
                f"{planned.skipped.get(min(self.budget.sizes), 'there is no test patient')}. Use a "
                "larger part of the data set."
            )
        pyramids = Pyramids(setting)
        supporting = sorted({int(row) for one in planned.supports for row in one.train})
        groups: dict[tuple[int, ...], list] = {}
        for one in planned.supports:
            groups.setdefault(tuple(map(int, one.test)), []).append(one)
        tick = Ticks(setting, len(supporting) + sum(map(len, groups)))
        known = {}
        for row in supporting:
            known[row] = _read(setting, row, pyramids)
            tick()
        rows = []
        for number, (test, supports) in enumerate(groups.items()):
            fits = []
            for one in supports:
                channels, points = zip(*(known[int(row)] for row in one.train), strict=True)
                made = prototypes(channels, points, len(setting.card.classes))
                columns = {
                    "repeat": one.draw,
                    "fold": one.fold,
                    "refit": HEADLINE,
                    "shots": one.size,
                }
                fits.append(Fit(columns, made))
            # the picture is of the most volumes
            fits.sort(key=lambda fit: (-fit.columns["shots"], fit.columns["repeat"]))
            rows += answers(setting, test, pyramids, fits, tick, number == 0)
        return pd.DataFrame(rows)


def _read(setting: Setting, row: int, pyramids: Pyramids) -> tuple[list[np.ndarray], Points]:
    """Channels and labels at the points of one case."""
    pyramid = pyramids.of(row)
    levels = levels_of(setting, pyramid)
    points = points_of(setting, row, pyramid.lattice, POINTS)
    return pyramid.at(points.index, levels), points


PROBES = (SegmentPrototype(),)
