"""Which marked places are lesions? One linear map on all maps of a frozen encoder, at the marks.

The second half of a detector, as in the false-positive reduction of LUNA16 (Setio et al., Medical
Image Analysis 42 (2017) 1): where somebody else's detector has marked places, a logistic regression
on principal components of every level, read at the mark itself, and on where the mark lies in the
field of view, as in ``detect``, tells the right ones from the others. The marks are the same for
all encoders, so that what is compared is how they describe a place, not how they search.

By LUNA16's rule a mark is right if it is within a lesion's radius of its center. A lesion without a
mark cannot be found; it counts as missed, for everyone alike.
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
from ..targets import Suspects
from ..types import Answer, Kind
from ._candidates import Judged, draws, hits, soonest
from ._components import Components
from ._heat import PENALTIES, POINTS_IN_ALL, Heat, Sample, fit, with_maps
from ._segmentation import Ticks

if TYPE_CHECKING:
    import pandas as pd

    from ..dense import Pyramid
    from ..dense_cache import Pyramids


@dataclass(frozen=True)
class ScoreCandidates:
    """Logistic regression on the maps at given places."""

    name: str = "score_candidates"
    version: int = 1
    kinds: tuple[Kind, ...] = ("candidates",)
    answers: Answer = "detection"
    title: str = "Logistic regression on all maps at places that others have marked"
    cost: str = (
        "One pass of the encoder over every image; then a regression on at most 40,000 marks, four "
        "times, and a second pass over the kept maps. 240 heads of 48x56x48 voxels with 10 marks "
        "each on one CPU core: 0.7 s beside the maps; not measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """Score the marks of every test case; see ``studies.Study``.

        Under cross-validation with one repeat: the maps of all cases are read anew in each fold.

        Raises:
            ProbeError: the training cases have no right or no wrong mark, or the task states no
                lattice.
            EncoderError: the encoder has no maps.
        """
        import pandas as pd
        from threadpoolctl import threadpool_limits

        from ..dense_cache import Pyramids

        card, cases = setting.card, setting.cases
        plans = [with_val(trial, card, cases) for trial in trials(card, cases, repeats=1)]
        learnt = sorted({int(row) for trial in plans for row in trial.rows("train")})
        tick = Ticks(setting, len(learnt) + sum(len(t.rows("val", "test")) for t in plans))
        work = _Work(setting, Pyramids(setting), {}, tick)
        rows = []
        with threadpool_limits(1, user_api="blas"):  # two threads round sums in another order
            work.learn(learnt)
            for trial in plans:
                rows += work.scored(trial)
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Work:
    """One encoder on one task: what it says at the marks of training images, and what follows."""

    setting: Setting
    pyramids: Pyramids
    samples: dict[int, Sample]
    tick: Ticks

    def suspects(self, row: int) -> Suspects:
        """Of a case."""
        target = self.setting.cases[row].target
        assert isinstance(target, Suspects)  # noqa: S101  of every such task, see ``tasks``
        return target

    def places(self, row: int) -> np.ndarray:
        """(M, 3) scanner mm."""
        return np.asarray(self.suspects(row).places, np.float64).reshape(-1, 3)

    def found(self, row: int) -> np.ndarray:
        """(M,) int: the lesion that each mark hits, or -1."""
        lesions = self.suspects(row).lesions
        return hits(self.places(row), lesions, [one.diameter_mm / 2 for one in lesions])

    def learn(self, rows: Sequence[int]) -> None:
        """Read the maps at marks of these cases: at the right ones, and as many others as fit."""
        card = self.setting.card
        most = max(1, POINTS_IN_ALL // max(1, len(rows)))
        for row in rows:
            case, pyramid = self.setting.cases[row], self._pyramid(row)
            label = (self.found(row) >= 0).astype(int)
            seed = int(position(card.name, card.data_version, "marks", case.id) * 2**53)
            order = np.random.default_rng(seed).permutation(len(label))
            kept = np.sort(order[np.argsort(-label[order], kind="stable")][:most])
            index = self._index(row, pyramid)[kept]
            self.samples[row] = Sample(pyramid.lattice, index, label[kept], pyramid.at(index))
            self.tick()

    def scored(self, trial: Trial) -> list[dict]:
        """Fit on train, choose on val, score on test: one row per test case and fit."""
        train = [int(row) for row in trial.rows("train")]
        parts = [self.samples[row] for row in train]
        right = np.array([part.label.any() for part in parts])
        wrong = np.array([not part.label.all() for part in parts])
        if not (right.any() and wrong.any()):
            raise ProbeError(
                f"The training cases of task '{self.setting.card.name}' have no "
                f"{'wrong' if right.any() else 'right'} mark, so there is nothing to tell apart. "
                "Use a larger part of the data set."
            )
        components = [
            Components.fit([part.levels[level] for part in parts])
            for level in range(len(parts[0].levels))
        ]
        heat = fit(parts, np.ones(len(train), int), components, PENALTIES)
        chosen = self._choose(heat, [int(row) for row in trial.rows("val")])
        fits = [(HEADLINE, heat.one(chosen))]
        patient = np.array([self.setting.cases[row].patient for row in train])
        drawn = draws(patient, [right, wrong], self.setting.seed + trial.repeat)
        for refit, counts in enumerate(drawn):
            fits.append((refit, fit(parts, counts, components, PENALTIES[[chosen]])))
        rows = []
        for row in trial.rows("test"):
            case, pyramid, places = self.setting.cases[row], self._pyramid(row), self.places(row)
            index = self._index(row, pyramid)
            rows += [
                {
                    "repeat": trial.repeat,
                    "fold": trial.fold,
                    "refit": refit,
                    "case": case.id,
                    "patient": case.patient,
                    "scores": one.at(pyramid, index)[0].tolist(),
                    "found": self.found(row).tolist(),
                    "lesions": len(self.suspects(row).lesions),
                    "forward_voxels": pyramid.forward_voxels,
                    **{f"{axis}_mm": places[:, i].tolist() for i, axis in enumerate("xyz")},
                    "chosen_penalty": float(PENALTIES[chosen]),
                }
                for refit, one in fits
            ]
            self.tick()
        return rows

    def _index(self, row: int, pyramid: Pyramid) -> np.ndarray:
        """(M, 3) of the marks on the lattice; one outside of it is read at its border."""
        index = pyramid.lattice.index_of(self.places(row))
        return np.clip(index, 0, np.array(pyramid.lattice.shape) - 1)

    def _pyramid(self, row: int) -> Pyramid:
        return with_maps(self.setting.encoder.card.name, self.pyramids.of(row))

    def _choose(self, heat: Heat, rows: Sequence[int]) -> int:
        """The penalty at which the lesions of val are found after the fewest false marks."""
        tested: list[list[Judged]] = [[] for _ in PENALTIES]
        for row in rows:
            pyramid, found = self._pyramid(row), self.found(row)
            scores = heat.at(pyramid, self._index(row, pyramid))
            for images, score in zip(tested, scores, strict=True):
                images.append(Judged(score, found, len(self.suspects(row).lesions)))
            self.tick()
        return soonest(tested)


PROBES = (ScoreCandidates(),)
