"""Where are the lesions? One linear map on all maps of a frozen encoder, and the peaks it has.

A logistic regression tells points within lesions from others, on principal components of every
level and on where the point lies in the field of view; its log-odds at all points of the lattice
are a heat map, whose peaks are the candidates. The regression is fitted twice, the second time
with the false candidates that the first finds in the training images.

The place is given to every encoder, as a polynomial of the second degree: lesions have places that
they prefer, and no encoder is to win because its maps tell the place by their padding. What place
alone is worth is the score of an encoder whose maps are constant.

Trilinear interpolation and affine maps commute: components and regression become one affine map
per level, and only one field per penalty is brought to the lattice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ProbeError
from ..predictions import HEADLINE
from ..splits import position
from ..studies import Setting, Trial, trials, with_val
from ..targets import Lesion
from ..types import Answer, Kind
from ._candidates import Judged, distances, draws, hit_mm, peaks, sampled, soonest
from ._components import Components
from ._heat import PENALTIES, POINTS_IN_ALL, Heat, Sample, fit, with_maps
from ._segmentation import Ticks, all_cases

if TYPE_CHECKING:
    import pandas as pd

    from ..dense import Pyramid
    from ..dense_cache import Pyramids

POINTS = 400
"""Per training image, to begin with."""

HARD = 30
"""False candidates per training image that the second fit learns from."""


@dataclass(frozen=True)
class Detect:
    """Dense localisation by logistic regression."""

    name: str = "detect"
    version: int = 1
    kinds: tuple[Kind, ...] = ("detection",)
    answers: Answer = "detection"
    title: str = "Peaks of a logistic regression on all maps at points of the lattice"
    cost: str = (
        "One pass of the encoder over every image; then a regression on at most 40,000 points, "
        "five times, and three passes over the kept maps. 240 heads of 48x56x48 voxels on one "
        "CPU core: 20 s for the maps of a small Swin transformer, 18 s for the rest; not "
        "measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """Locate the lesions of every test case; see ``studies.Study``.

        Under cross-validation with one repeat: the maps of all cases are read anew in each fold.

        Raises:
            ProbeError: no training case has a lesion, or the task states no lattice.
            EncoderError: the encoder has no maps.
        """
        import pandas as pd
        from threadpoolctl import threadpool_limits

        from ..dense_cache import Pyramids

        card, cases = setting.card, setting.cases
        plans = [with_val(trial, card, cases) for trial in trials(card, cases, repeats=1)]
        learnt = sorted({int(row) for trial in plans for row in trial.rows("train")})
        tick = Ticks(setting, len(learnt) + sum(map(all_cases, plans)))
        work = _Work(setting, Pyramids(setting), {}, tick)
        rows = []
        # two threads round sums in another order; the encoder's own are not of this kind
        with threadpool_limits(1, user_api="blas"):
            work.learn(learnt)
            for trial in plans:
                rows += work.located(trial)
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Work:
    """One encoder on one task: samples of the training images, and what follows from them."""

    setting: Setting
    pyramids: Pyramids
    samples: dict[int, Sample]
    tick: Ticks

    def lesions(self, row: int) -> tuple[Lesion, ...]:
        """Of a case."""
        target = self.setting.cases[row].target
        assert isinstance(target, tuple)  # noqa: S101  of every detection, see ``tasks``
        return tuple(lesion for lesion in target if isinstance(lesion, Lesion))

    def learn(self, rows: Sequence[int]) -> None:
        """Draw points of these cases; who is drawn depends on the task and the case alone."""
        card = self.setting.card
        most = min(POINTS, POINTS_IN_ALL // max(1, len(rows)))
        for row in rows:
            case, pyramid = self.setting.cases[row], self._pyramid(row)
            seed = int(position(card.name, card.data_version, "points", case.id) * 2**53)
            index, label = sampled(pyramid.lattice, self.lesions(row), card, seed, most)
            self.samples[row] = Sample(pyramid.lattice, index, label, pyramid.at(index))
            self.tick()

    def located(self, trial: Trial) -> list[dict]:
        """Fit on train, choose on val, locate on test: one row per test case."""
        card = self.setting.card
        train = [int(r) for r in trial.rows("train")]
        known = [lesion for row in train for lesion in self.lesions(row)]
        if not known:
            raise ProbeError(
                f"No training case of task '{card.name}' has a lesion, so there is nothing to "
                "learn from. Use a larger part of the data set."
            )
        apart = float(np.median([hit_mm(lesion, card) for lesion in known]))
        parts = [self.samples[row] for row in train]
        components = [
            Components.fit([part.levels[level] for part in parts])
            for level in range(len(parts[0].levels))
        ]
        once = np.ones(len(train), int)
        middle = len(PENALTIES) // 2
        heat = fit(parts, once, components, PENALTIES).one(middle)
        parts += [self._hard(row, heat, apart) for row in train]
        heat = fit(parts, np.tile(once, 2), components, PENALTIES)
        chosen = self._choose(heat, [int(r) for r in trial.rows("val")], apart)
        fits = [(HEADLINE, heat.one(chosen))]
        patient = np.array([self.setting.cases[row].patient for row in train])
        there = np.array([bool(self.lesions(row)) for row in train])
        drawn = draws(patient, [there], self.setting.seed + trial.repeat)
        for refit, counts in enumerate(drawn):
            again = fit(parts, np.tile(counts, 2), components, PENALTIES[[chosen]])
            fits.append((refit, again))
        rows = []
        for row in trial.rows("test"):
            case, pyramid, lesions = self.setting.cases[row], self._pyramid(row), self.lesions(row)
            for refit, one in fits:
                candidates = peaks(one.of(pyramid)[0], card.lattice_mm or (), apart)
                place = pyramid.lattice.to_mm(candidates.index)
                rows.append(
                    {
                        "repeat": trial.repeat,
                        "fold": trial.fold,
                        "refit": refit,
                        "case": case.id,
                        "patient": case.patient,
                        "scores": candidates.score.tolist(),
                        "found": candidates.found(pyramid.lattice, lesions, card).tolist(),
                        "lesions": len(lesions),
                        "forward_voxels": pyramid.forward_voxels,
                        **{f"{axis}_mm": place[:, i].tolist() for i, axis in enumerate("xyz")},
                        "chosen_penalty": float(PENALTIES[chosen]),
                    }
                )
            self.tick()
        return rows

    def _pyramid(self, row: int) -> Pyramid:
        return with_maps(self.setting.encoder.card.name, self.pyramids.of(row))

    def _hard(self, row: int, heat: Heat, apart_mm: float) -> Sample:
        """The best candidates of a training image that are wrong."""
        card, pyramid, lesions = self.setting.card, self._pyramid(row), self.lesions(row)
        candidates = peaks(heat.of(pyramid)[0], card.lattice_mm or (), apart_mm)
        wrong = candidates.index[candidates.found(pyramid.lattice, lesions, card) < 0]
        if lesions:  # a large lesion's outer part is no background
            radius = [lesion.diameter_mm / 2 for lesion in lesions]
            away = distances(pyramid.lattice.to_mm(wrong), lesions)
            wrong = wrong[(away > radius).all(1)]
        index = wrong[:HARD]
        self.tick()
        return Sample(pyramid.lattice, index, np.zeros(len(index), int), pyramid.at(index))

    def _choose(self, heat: Heat, rows: Sequence[int], apart_mm: float) -> int:
        """The penalty at which the lesions of val are found after the fewest false candidates."""
        card = self.setting.card
        tested: list[list[Judged]] = [[] for _ in PENALTIES]
        for row in rows:
            pyramid, lesions = self._pyramid(row), self.lesions(row)
            for of, field in zip(tested, heat.of(pyramid), strict=True):
                candidates = peaks(field, card.lattice_mm or (), apart_mm)
                found = candidates.found(pyramid.lattice, lesions, card)
                of.append(Judged(candidates.score, found, len(lesions)))
            self.tick()
        return soonest(tested)


PROBES = (Detect(),)
