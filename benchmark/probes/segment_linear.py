"""Segmentation by one linear layer per voxel, on all maps of a frozen encoder at once.

Every encoder is read at the same points in mm, its levels reduced to the same number of principal
components. The layer is an exact multinomial logistic regression on a fixed sample of training
voxels: no step size, no epochs, no luck. The log-loss is indifferent to structures that fill a
thousandth of the image, so one bias per class is chosen by Dice on val afterwards.

Trilinear interpolation and affine maps commute: components and layer become one affine map from
the channels of each level to the K classes, and only K fields are brought to the lattice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ProbeError
from ..predictions import HEADLINE
from ..studies import Setting, Trial, trials, with_val
from ..types import Answer, Kind
from ._components import Components
from ._layers import Layer, best_biases, biased, logistic_maps, merged
from ._segmentation import (
    Coarse,
    Fit,
    Maps,
    Points,
    Ticks,
    all_cases,
    answers,
    levels_of,
    points_of,
    some_of,
)
from ._training import resampled_patients

if TYPE_CHECKING:
    import pandas as pd

    from ..dense import Pyramid

PENALTIES = 10.0 ** np.arange(1, 6)
"""C, which multiplies the mean log-loss over voxels: from a layer that is hardly more than the
prior to one that is hardly penalised, on components of SD 1."""

POINTS = 40_000
"""Training voxels in all, about; with 320 components they are 100 MB in float64."""

POINTS_PER_CASE = 4_000
"""At most: voxels of one image are much alike."""

VAL_CASES = 50
"""That choices are made on, at most, in hashed order."""

VAL_POINTS = 40_000
"""Per case: all of most structures, and a weighted part of the background."""

REFITS = 3
"""On resampled training patients; each costs as much as a fit and a prediction of all tests."""

COARSE_MM = 4.0


@dataclass(frozen=True)
class Fitted:
    """What one trial's training and val patients gave."""

    headline: Layer
    refits: tuple[Layer, ...]
    chosen: dict[str, float]

    def __call__(self, pyramid: Pyramid) -> np.ndarray:
        """(K, *lattice.shape) float32 probabilities of the headline fit."""
        return self.headline(pyramid)


def fitted(
    setting: Setting,
    trial: Trial,
    pyramids: Maps,
    refits: int = 0,
    tick: Ticks | None = None,
) -> Fitted:
    """Fit on the training cases of a trial; choose penalty and biases on its val cases.

    Args:
        setting: encoder and task.
        trial: who trains; test cases are not touched.
        pyramids: maps of the cases.
        refits: on resampled training patients, with the same components and choices.
        tick: called after each case.

    Raises:
        EncoderError: the encoder gives no maps.
        ProbeError: there is no training case.
    """
    trial = with_val(trial, setting.card, setting.cases)
    train = trial.rows("train")
    if not len(train):
        raise ProbeError("There is no train case. Use a larger part of the data set.")
    n_classes = len(setting.card.classes)
    most = min(POINTS_PER_CASE, max(1, POINTS // len(train)))
    levels: list[int] = []
    points: list[Points] = []
    raw: list[list[np.ndarray]] = []  # per level, per case
    for row in train:
        pyramid = pyramids.of(int(row))
        levels = levels_of(setting, pyramid)
        points.append(points_of(setting, int(row), pyramid.lattice, most))
        raw.append(pyramid.at(points[-1].index, levels))
        if tick:
            tick()
    # each level's channels are let go of as soon as its components are there
    components, parts = [], []
    for level in range(len(levels)):
        channels = [case[level] for case in raw]
        for case in raw:
            case[level] = np.empty(0)
        components.append(Components.fit(channels))
        parts.append(np.concatenate([components[-1].apply(one) for one in channels]))
    x = np.concatenate(parts, axis=1)
    del parts, raw
    label = np.concatenate([one.label for one in points])
    weight = np.concatenate([one.weight for one in points])
    patient = np.concatenate(
        [
            np.full(len(one.label), setting.cases[row].patient, object)
            for row, one in zip(train, points, strict=True)
        ]
    ).astype(str)

    def layers(weight: np.ndarray, penalties: Sequence[float] | np.ndarray) -> list[Layer]:
        fits = logistic_maps(x, label, weight / weight.sum(), penalties, n_classes)
        return [merged(levels, components, w, b) for w, b in fits]

    candidates = layers(weight, PENALTIES)
    best, biases = _choose(setting, trial, pyramids, candidates, tick)
    c = float(PENALTIES[best])
    again = [
        layers(weight * counts, [c])[0]
        for counts in resampled_patients(patient, setting.seed + trial.repeat, refits)
    ]
    names = {f"bias_{k}": float(b) for k, b in enumerate(biases) if k}
    return Fitted(
        biased(candidates[best], biases),
        tuple(biased(layer, biases) for layer in again),
        {"C": c, **names},
    )


def _choose(
    setting: Setting,
    trial: Trial,
    pyramids: Maps,
    candidates: Sequence[Layer],
    tick: Ticks | None,
) -> tuple[int, np.ndarray]:
    """Index of the layer, and (K,) biases, with the best Dice on val.

    Where a task has too few patients for a val side the training cases stand in.
    """
    card = setting.card
    rows = trial.rows("val")
    rows = rows if len(rows) else trial.rows("train")
    logits: list[list[np.ndarray]] = [[] for _ in candidates]
    points: list[Points] = []
    for row in some_of(setting, rows, VAL_CASES):
        pyramid = pyramids.of(row)
        points.append(points_of(setting, row, pyramid.lattice, VAL_POINTS))
        # all penalties in one pass: their layers stacked
        first = candidates[0]
        stacked = Layer(
            first.levels,
            tuple(
                np.concatenate(w) for w in zip(*(one.weights for one in candidates), strict=True)
            ),
            np.concatenate([one.offset for one in candidates]),
        )
        parts = stacked.logits(pyramid).at(points[-1].index)
        values = np.sum(parts, axis=0, dtype=np.float32) + stacked.offset.astype(np.float32)
        for one, part in zip(logits, np.split(values, len(candidates), axis=1), strict=True):
            one.append(part)
        if tick:
            tick()
    truth = np.concatenate([one.label for one in points])
    weight = np.concatenate([one.weight for one in points])
    case = np.repeat(np.arange(len(points)), [len(one.label) for one in points])
    found = [
        best_biases(np.concatenate(one), truth, weight, case, len(card.classes)) for one in logits
    ]
    best = int(np.argmax([dice for dice, _ in found]))  # the strongest of equal penalties
    return best, found[best][1]


@dataclass(frozen=True)
class SegmentLinear:
    """Logistic regression per voxel on all levels, or on the coarse ones alone.

    One split, or one repeat of five folds: a fit takes minutes.
    """

    name: str = "segment_linear"
    title: str = "One linear layer per voxel on all maps"
    from_mm: float = 0.0
    """Levels that are finer are left out; 0: none is."""
    version: int = 1
    kinds: tuple[Kind, ...] = ("segmentation",)
    answers: Answer = "segmentation"
    cost: str = (
        "One pass of the encoder over all scans, which the other dense protocols share; the fit "
        "takes 1 to 3 minutes on two CPU cores, a test case seconds; not measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """See ``Study.run``."""
        import pandas as pd

        from ..dense_cache import Pyramids

        pyramids: Maps = Pyramids(setting)
        if self.from_mm:
            pyramids = Coarse(pyramids, self.from_mm)
        planned = list(trials(setting.card, setting.cases, repeats=1))
        tick = Ticks(setting, sum(all_cases(trial) for trial in planned))
        rows = []
        for trial in planned:
            fit = fitted(setting, trial, pyramids, REFITS, tick)
            about = {"repeat": trial.repeat, "fold": trial.fold}
            chosen = {f"chosen_{name}": value for name, value in fit.chosen.items()}
            layers = {HEADLINE: fit.headline, **dict(enumerate(fit.refits))}
            fits = [Fit({**about, "refit": n, **chosen}, layer) for n, layer in layers.items()]
            first = trial is planned[0]
            rows += answers(setting, trial.rows("test"), pyramids, fits, tick, first)
        return pd.DataFrame(rows)


PROBES = (
    SegmentLinear(),
    SegmentLinear(
        "segment_linear_coarse",
        f"One linear layer per voxel on the maps of {COARSE_MM:g} mm and coarser",
        COARSE_MM,
    ),
)
