"""Survival: Cox regression with a ridge penalty on frozen embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import ProbeError
from ..splits import REPEATS, uses_cv
from ..studies import Setting, trials
from ..targets import FollowUp
from ..types import Answer, Case, Features, Kind, TaskCard
from ._cox import Cohort, baseline, cox_path, log_likelihood, rotated
from ._linear import PENALTIES
from ._training import Sides, choose, resampled_patients, standardised_sides

if TYPE_CHECKING:
    import pandas as pd

DECILES = tuple(k / 10 for k in range(1, 10))
"""Of the event times: where survival curves are compared. The first and the last tenth are left
out, where hardly anybody has had the event yet or is still observed."""

CERTAIN = 30.0
"""Logarithm of a cumulative hazard beyond which the event is certain: exp(-exp(30)) is 0."""


class Fit(NamedTuple):
    """What one fit predicts for the test patients."""

    risk: np.ndarray
    """(m,) log hazard ratio to the mean training patient."""
    alive: np.ndarray
    """(m, H) probability to be free of the event at each horizon."""


@dataclass(frozen=True)
class SurvivalStudy:
    """Cox's model with all features standardised on train, and Breslow's baseline hazard.

    The penalty is chosen by cross-validated partial likelihood (Verweij & van Houwelingen,
    Statistics in Medicine 12 (1993) 2305): that of train and held-out patients together less that
    of train, on val where there is one, else over patient-grouped folds inside train. Refits on
    resampled training patients tell how much those matter, as for the linear probe.

    Horizons are deciles of the event times on train and val; where everybody is trained on in
    some fold, of all patients. They are where curves are compared, and no fit sees them.
    """

    name: str = "survival"
    title: str = "Cox regression with a ridge penalty"
    version: int = 1
    kinds: tuple[Kind, ...] = ("survival",)
    answers: Answer = "survival"
    cost: str = (
        "21 fits of a convex model and the choice of its penalty on the CPU: 0.1 s for 140 "
        "training patients and 400 features; embeddings are extracted once; not measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """Fit and predict; see ``studies.Study``.

        Returns:
            Beside the common columns: ``years`` and ``event`` (0 or 1) as observed; ``risk``;
            ``horizon_1``, ... (years) and ``alive_1``, ..., the predicted probability to be free
            of the event then; ``chosen_C``.

        Raises:
            ProbeError: no event among the training patients, or no patients.
        """
        import pandas as pd
        from threadpoolctl import threadpool_limits

        from ..evaluate import REFITS

        card, cases = setting.card, setting.cases
        x = setting.embeddings()
        followup = _followup(cases)
        patient = np.array([case.patient for case in cases])
        horizons = _horizons(card, cases, followup)
        planned = list(trials(card, cases))
        share = REFITS // REPEATS if uses_cv(card) else REFITS
        tables = []
        for done, trial in enumerate(planned):
            test = trial.side == "test"
            hidden = np.where(test[:, None], np.nan, followup)
            features = Features(x, hidden, trial.side, patient, card.kind)
            # one BLAS thread: two are slower at these sizes, and round sums in another order
            with threadpool_limits(1):
                c, fits = _fit(standardised_sides(features), setting.seed, share, horizons)
            numbers = [-1, *range(trial.repeat * share, (trial.repeat + 1) * share)]
            for refit, fit in zip(numbers, fits, strict=True):
                tables.append(
                    pd.DataFrame(
                        {
                            "repeat": trial.repeat,
                            "fold": trial.fold,
                            "refit": refit,
                            "case": [cases[int(row)].id for row in np.flatnonzero(test)],
                            "patient": patient[test],
                            "years": followup[test, 0],
                            "event": followup[test, 1].astype(np.int64),
                            "risk": fit.risk,
                            **{f"horizon_{k}": years for k, years in enumerate(horizons, 1)},
                            **{f"alive_{k}": alive for k, alive in enumerate(fit.alive.T, 1)},
                            "chosen_C": c,
                        }
                    )
                )
            if setting.progress:
                setting.progress(done + 1, len(planned))
        return pd.concat(tables, ignore_index=True)


def _followup(cases: Sequence[Case]) -> np.ndarray:
    """(N, 2) years, and 1 for an event or 0 for the end of observation."""
    targets = [case.target for case in cases]
    return np.array([[t.years, t.event] for t in targets if isinstance(t, FollowUp)], np.float64)


def _horizons(card: TaskCard, cases: Sequence[Case], followup: np.ndarray) -> np.ndarray:
    """(H,) years, rising."""
    known = np.array([uses_cv(card) or case.split != "test" for case in cases], bool)
    events = followup[known & (followup[:, 1] > 0), 0]
    if not len(events):
        raise ProbeError(
            f"No training patient of '{card.name}' has had the event, so there is nothing to "
            "learn. Use a larger part of the data set."
        )
    return np.quantile(events, DECILES)


def _fit(sides: Sides, seed: int, refits: int, horizons: np.ndarray) -> tuple[float, list[Fit]]:
    """Choose C; fit on train and on resampled patients of train, and predict test.

    Args:
        sides: scaled rows; targets are (n, 2) years and event.
        seed: of the folds and of the refits.
        refits: how many.
        horizons: (H,) years.

    Raises:
        ProbeError: no event among the training patients.
    """
    if not sides.train_target[:, 1].any():
        raise ProbeError(
            f"None of {len(sides.train_target)} training patients has had the event, so there is "
            "nothing to learn. Use a larger part of the data set."
        )

    def losses(
        x: np.ndarray, target: np.ndarray, out: np.ndarray, out_target: np.ndarray
    ) -> np.ndarray:
        """(candidates, 1): minus what the held-out patients add to the log partial likelihood."""
        z = rotated(x, out)
        cohort = Cohort.of(target)
        both = np.concatenate([target, out_target])
        fits = list(cox_path(z.train[cohort.order], cohort, PENALTIES))
        added = [
            log_likelihood(both, np.concatenate([z.train @ w, z.out @ w]))
            - log_likelihood(target, z.train @ w)
            for w in fits
        ]
        return -np.array(added)[:, None]

    c = float(PENALTIES[choose(sides, seed, losses)])
    z = rotated(sides.train, sides.test)
    draws = resampled_patients(sides.train_patient, seed, refits)
    fits = []
    for weight in [None, *draws]:
        cohort = Cohort.of(sides.train_target, weight)
        (w,) = cox_path(z.train[cohort.order], cohort, [c])
        risk = z.out @ w
        hazard = baseline(cohort, (z.train @ w)[cohort.order], horizons)
        alive = np.exp(-np.exp(np.minimum(hazard + risk[:, None], CERTAIN)))
        fits.append(Fit(risk, alive))
    return c, fits


PROBES = (SurvivalStudy(),)
