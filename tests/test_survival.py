"""Cox regression, the concordance index and the Brier score, against scikit-survival."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tomoprobe.benchmark import evaluate, metrics, predictions, probes, splits
from tomoprobe.benchmark.errors import ProbeError
from tomoprobe.benchmark.features import DataIdentity
from tomoprobe.benchmark.metrics.survival import kaplan_meier
from tomoprobe.benchmark.probes._cox import Cohort, baseline, cox_path, log_likelihood, rotated
from tomoprobe.benchmark.studies import Setting
from tomoprobe.benchmark.targets import FollowUp
from tomoprobe.benchmark.types import Case, TaskCard

from . import toy
from .study_survival import CARD
from .test_retrieval import Known

C, IBS = metrics.get("concordance"), metrics.get("integrated_brier")
CV_CARD = replace(CARD, counts={"cases": 60, "patients": 60})

# A small cohort, written down as formulas so that other programs can be asked about it.
I = np.arange(24)  # noqa: E741
X = np.stack([np.sin(I), np.cos(3 * I), (I * 7 % 11) / 11.0], axis=1)
YEARS = 1 + (I * 37 % 29) / 2.0 + 0.01 * I
EVENT = (I * 5 % 7) < 4
PLAIN = np.column_stack([YEARS, EVENT])
TIED = np.column_stack([np.ceil(YEARS / 3), EVENT])

SKSURV = {
    ("plain", 0.1): [0.006248837297725775, 0.2964774043219806, -0.042103278997407984],
    ("plain", 10.0): [-0.059888873920475344, 0.8268886703538576, -0.2573701969388935],
    ("tied", 0.1): [0.01995866706400601, 0.17600964656886497, -0.01415173599790388],
    ("tied", 10.0): [0.015772327073734525, 0.43051816522548947, 0.041315255444301494],
}
"""Coefficients of scikit-survival 0.28.0, CoxPHSurvivalAnalysis(alpha=1 / C, ties="breslow")."""


def fitted(followup: np.ndarray, c: float, weight: np.ndarray | None = None) -> np.ndarray:
    cohort = Cohort.of(followup, weight)
    (w,) = cox_path(X[cohort.order], cohort, [c])
    return w


# --- Cox's model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "c"), SKSURV)
def test_coefficients_are_those_of_scikit_survival(times: str, c: float) -> None:
    found = fitted(PLAIN if times == "plain" else TIED, c)
    assert found == pytest.approx(SKSURV[times, c], abs=1e-6)


def test_survival_curves_are_those_of_scikit_survival() -> None:
    """scikit-survival 0.28.0, predict_survival_function of the fit at C = 10."""
    cohort = Cohort.of(PLAIN)
    eta = X @ fitted(PLAIN, 10.0)
    hazard = baseline(cohort, eta[cohort.order], np.array([3.0, 6.0, 9.0, 12.0]))
    alive = np.exp(-np.exp(hazard + eta[:, None]))
    first = [0.9175026504184625, 0.9175026504184625, 0.445350171418977, 0.14876348856060048]
    sixth = [0.9798956121151777, 0.9798956121151777, 0.8262961066607967, 0.6379819082947085]
    assert alive[0] == pytest.approx(first, abs=1e-6)
    assert alive[5] == pytest.approx(sixth, abs=1e-6)
    assert baseline(cohort, eta[cohort.order], np.array([0.5]))[0] == -np.inf, "before any event"


def test_a_path_of_penalties_ends_where_single_fits_do() -> None:
    cohort = Cohort.of(PLAIN)
    penalties = 10.0 ** np.arange(-6, 4)
    for c, w in zip(penalties, cox_path(X[cohort.order], cohort, penalties), strict=True):
        assert w == pytest.approx(fitted(PLAIN, c), abs=1e-5)


@pytest.mark.parametrize("followup", [PLAIN, TIED])
def test_a_weight_is_the_same_as_repeating_a_row(followup: np.ndarray) -> None:
    weight = np.random.default_rng(0).integers(0, 3, 24)
    again = np.repeat(np.arange(24), weight)
    cohort = Cohort.of(followup[again])
    (w,) = cox_path(X[again][cohort.order], cohort, [1.0])
    assert fitted(followup, 1.0, weight) == pytest.approx(w, abs=1e-6)


def test_more_features_than_patients_are_fitted_in_the_span_of_the_patients() -> None:
    rng = np.random.default_rng(1)
    x, out = rng.normal(size=(24, 60)), rng.normal(size=(5, 60))
    z = rotated(x, out)
    assert z.train.shape == (24, 24)
    cohort = Cohort.of(PLAIN)
    (narrow,) = cox_path(z.train[cohort.order], cohort, [1.0])
    (wide,) = cox_path(x[cohort.order], cohort, [1.0])
    center = x.mean(0)
    assert z.out @ narrow == pytest.approx((out - center) @ wide, abs=1e-5)


def test_separable_patients_stay_finite_and_in_order() -> None:
    x = -YEARS[:, None] * 10
    cohort = Cohort.of(PLAIN)
    (w,) = cox_path(x[cohort.order], cohort, [1e3])
    assert np.isfinite(w).all() and w[0] > 0
    assert log_likelihood(PLAIN, x @ w) > log_likelihood(PLAIN, np.zeros(24))


# --- concordance ---------------------------------------------------------------------------------


def test_concordance_by_hand() -> None:
    # event at 1, censored at 2, event at 3, censored at 4: usable are 1-2, 1-3, 1-4, 3-4
    followup = np.array([[1, 1], [2, 0], [3, 1], [4, 0.0]])
    assert C(followup, np.array([4.0, 3, 2, 1])) == 1
    assert C(followup, np.array([4.0, 9, 2, 1])) == 0.75, "whoever was censored at 2 says no more"
    assert C(followup, np.array([1.0, 2, 3, 4])) == 0
    assert C(followup, np.array([2.0, 2, 1, 1])) == (0.5 + 1 + 1 + 0.5) / 4


def test_at_one_time_events_come_before_censoring_and_are_not_compared_with_each_other() -> None:
    followup = np.array([[1, 1], [1, 1], [1, 0.0]])
    assert C(followup, np.array([3.0, 2, 1])) == 1
    assert C(followup, np.array([2.0, 3, 1])) == 1
    assert C(followup, np.array([1.0, 3, 2])) == 0.5
    assert np.isnan(C(followup[1:2], np.array([1.0])))


def test_concordance_is_that_of_scikit_survival() -> None:
    """scikit-survival 0.28.0, concordance_index_censored, of the fit at C = 10."""
    risk = X @ np.array(SKSURV["plain", 10.0])
    assert C(PLAIN, risk) == pytest.approx(0.6956521739130435, abs=1e-12)
    assert C(TIED, np.round(risk)) == pytest.approx(0.6770833333333334, abs=1e-12)


def test_only_patients_of_one_fold_are_compared() -> None:
    risk = -YEARS
    fold = I % 3
    shifted = risk + 1000.0 * fold  # each model has a level of its own
    assert C(PLAIN, shifted) < 0.9
    assert C(PLAIN, shifted, fold=fold) == 1


def test_more_events_than_are_compared_at_once() -> None:
    rng = np.random.default_rng(0)
    followup = np.column_stack([rng.exponential(1, 900), rng.random(900) < 0.8])
    risk = -followup[:, 0] + rng.normal(0, 1, 900)
    usable = (followup[:, 1, None] > 0) & (followup[:, :1] < followup[:, 0])
    expected = (risk[:, None] > risk)[usable].mean()
    assert C(followup, risk) == pytest.approx(expected, abs=1e-12)


# --- Brier score ---------------------------------------------------------------------------------


def curves(followup: np.ndarray, horizons: list[float]) -> np.ndarray:
    return np.column_stack([followup, np.tile(horizons, (len(followup), 1))])


def test_brier_score_by_hand() -> None:
    # event at 1; censored at 2; an event and a censoring at 3; observed until 5. At 4: the event at
    # 1 counts once. Of four at risk at 2 one was censored, so the event at 3 counts 4/3 times;
    # of the two left after it one was censored at 3, so the last counts 1 / (3/4 * 1/2) times.
    followup = np.array([[1, 1], [2, 0], [3, 1], [3, 0], [5, 0.0]])
    alive = np.array([[0.1], [0.9], [0.2], [0.7], [0.6]])
    expected = (0.1**2 + 0.2**2 * 4 / 3 + 0.4**2 * 8 / 3) / 5
    assert IBS(curves(followup, [4.0]), alive) == pytest.approx(expected)


def test_without_censoring_it_is_the_mean_squared_error() -> None:
    followup = np.column_stack([YEARS, np.ones(24)])
    alive = np.random.default_rng(0).random((24, 2))
    errors = [((followup[:, 0] > h) - alive[:, k]) ** 2 for k, h in enumerate((4.0, 8.0))]
    assert IBS(curves(followup, [4.0, 8.0]), alive) == pytest.approx(np.mean(errors))


def test_it_is_that_of_scikit_survival() -> None:
    """scikit-survival 0.28.0, integrated_brier_score with the same patients for the weights."""
    horizons = [3.0, 6.0, 9.0, 12.0]
    cohort = Cohort.of(PLAIN)
    eta = X @ fitted(PLAIN, 10.0)
    hazard = baseline(cohort, eta[cohort.order], np.array(horizons))
    alive = np.exp(-np.exp(hazard + eta[:, None]))
    assert IBS(curves(PLAIN, horizons), alive) == pytest.approx(0.13600496335493506, abs=1e-6)


def test_time_counts_by_its_length() -> None:
    followup = np.column_stack([YEARS, np.ones(24)])
    alive = np.column_stack([np.ones(24), np.ones(24), np.ones(24)])
    at = [float((followup[:, 0] <= h).mean()) for h in (4.0, 5.0, 14.0)]
    expected = ((at[0] + at[1]) / 2 * 1 + (at[1] + at[2]) / 2 * 9) / 10
    assert IBS(curves(followup, [4.0, 5.0, 14.0]), alive) == pytest.approx(expected)


def test_chance_is_the_kaplan_meier_curve() -> None:
    followup = np.array([[1, 1], [2, 0], [3, 1], [4, 0.0]])
    curve = kaplan_meier(followup, np.array([0.5, 1.0, 2.5, 3.5]))
    assert curve == pytest.approx([1, 3 / 4, 3 / 4, 3 / 8])
    target = curves(TIED, [1.0, 2.0, 3.0, 4.0])
    same = np.tile(kaplan_meier(TIED, target[0, 2:]), (24, 1))
    assert IBS.chance(target) == pytest.approx(IBS(target, same))
    for other in (same * 0.9, np.minimum(same * 1.1, 1)):
        assert IBS(target, other) > IBS.chance(target)


def test_other_horizons_for_some_patients_are_refused() -> None:
    target = curves(PLAIN, [3.0, 6.0])
    target[4, 3] = 7.0
    with pytest.raises(ProbeError, match="horizon"):
        IBS(target, np.ones((24, 2)))


@pytest.mark.parametrize("followup", [PLAIN, TIED])
def test_a_draw_is_the_same_as_repeating_its_rows(followup: np.ndarray) -> None:
    counts = np.random.default_rng(0).integers(0, 3, (6, 24))
    risk = np.round(X[:, 0], 1)
    target = curves(followup, [3.0, 4.5, 5.0])
    alive = np.random.default_rng(1).random((24, 3))
    drawn = C(followup, risk, counts), IBS(target, alive, counts)
    for b, count in enumerate(counts):
        rows = np.repeat(np.arange(24), count)
        assert drawn[0][b] == pytest.approx(C(followup[rows], risk[rows]))
        assert drawn[1][b] == pytest.approx(IBS(target[rows], alive[rows]))


# --- the study -----------------------------------------------------------------------------------


def cases(seed: int = 0) -> list[Case]:
    """60 cases whose hazard rises with their first feature; half are censored."""
    rng = np.random.default_rng(seed)
    years = rng.exponential(np.exp(-2 * features()[:, 0]))
    end = rng.exponential(1.5, 60)
    return [
        replace(case, target=FollowUp(float(min(t, c)), bool(t <= c)))
        for case, t, c in zip(toy.cases(CARD), years, end, strict=True)
    ]


def features() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(60, 10))


def studied(made: list[Case], card: TaskCard = CARD, x: np.ndarray | None = None) -> pd.DataFrame:
    known = Known(features() if x is None else x)
    setting = Setting(card, made, toy.ToyEncoder(), known, DataIdentity("", ""))  # type: ignore
    return probes.get("survival").run(setting)  # type: ignore[union-attr]


def test_the_follow_up_of_test_patients_is_not_seen() -> None:
    made = cases()
    known = studied(made)
    other = [
        replace(case, target=FollowUp(9.0 + i, i % 2 == 0)) if case.split == "test" else case
        for i, case in enumerate(made)
    ]
    again = studied(other)
    same = [c for c in known if c not in ("years", "event")]
    assert known[same].equals(again[same])
    assert not known["years"].equals(again["years"])


def test_refits_differ_and_curves_fall() -> None:
    table = studied(cases())
    assert sorted(set(table["refit"])) == list(range(-1, 20))
    assert len(table) == 21 * 20
    assert table.groupby("case")["risk"].nunique().min() > 10
    alive = table[[f"alive_{k}" for k in range(1, 10)]].to_numpy()
    assert ((alive >= 0) & (alive <= 1)).all() and (np.diff(alive, axis=1) <= 0).all()
    horizons = table[[f"horizon_{k}" for k in range(1, 10)]].drop_duplicates().to_numpy()
    assert len(horizons) == 1 and (np.diff(horizons) > 0).all()


def test_under_cross_validation_everybody_is_tested_once_per_repeat() -> None:
    made = [replace(case, split=None) for case in cases()]
    table = studied(made, CV_CARD)
    heads = predictions.headline_of(table)
    assert heads.groupby("repeat")["case"].nunique().tolist() == [60] * splits.REPEATS
    assert len(heads) == 60 * splits.REPEATS
    assert table["fold"].nunique() == splits.FOLDS and set(table["refit"]) == set(range(-1, 20))
    tested = predictions.stacked(heads, C)
    scores = [C(tested.target, r, fold=f) for r, f in zip(tested.values, tested.fold, strict=True)]
    assert np.mean(scores) > 0.7


def test_features_that_tell_the_hazard_beat_the_curve_without_covariates() -> None:
    signal = predictions.headline_of(studied(cases()))
    shuffled = features()[np.random.default_rng(0).permutation(60)]
    noise = predictions.headline_of(studied(cases(), x=shuffled))
    read = IBS.read(signal)
    assert IBS(*read) < IBS.chance(read.target)
    assert IBS(*IBS.read(noise)) > IBS(*read)
    assert C(*C.read(signal)) > 0.75 > C(*C.read(noise))


def test_scores_come_with_intervals_and_a_spread() -> None:
    table = studied(cases())
    about = predictions.Provenance(
        **dict.fromkeys(("model", "model_sha", "device", "software"), ""),
        **dict.fromkeys(("dataset_sha", "split_sha"), ""),
        **dict.fromkeys(("task_version", "probe_version"), 1),
        task="toy_survival",
        probe="survival",
        kind="survival",
        width=10,
        cv=False,
        subset=False,
        seconds=0.0,
    )
    rows = {row.metric: row for row in evaluate.score(table, about).results}
    for name in ("concordance", "integrated_brier"):
        row = rows[name]
        assert row.low is not None and row.high is not None and row.score is not None
        assert 0 < row.low < row.score < row.high < 1
        assert row.spread is not None and row.spread > 0


def test_without_an_event_there_is_nothing_to_learn() -> None:
    made = [replace(case, target=FollowUp(1.0, case.split == "test")) for case in cases()]
    with pytest.raises(ProbeError, match="has had the event"):
        studied(made)
