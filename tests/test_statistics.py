"""Intervals and differences: what they must do in every single case; coverage is measured apart."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from tomoprobe.benchmark import inflation, metrics, newton, resampling, simulation, statistics
from tomoprobe.benchmark.statistics import (
    ESTIMANDS,
    FLAGS,
    cv_difference,
    cv_interval,
    holm,
    paired_difference,
    score_interval,
)

AUROC = metrics.get("auroc")
N = 60


def classes(n: int = N, seed: int = 0, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Alternating targets, and class probabilities that know something about them."""
    y = np.arange(n) % 2
    odds = signal * y + np.random.default_rng(seed).normal(size=n)
    return y, probabilities(odds)


def probabilities(odds: np.ndarray) -> np.ndarray:
    """(..., N) log-odds -> (..., N, 2)."""
    p = 1 / (1 + np.exp(-odds))
    return np.stack([1 - p, p], axis=-1)


def people(n: int = N) -> np.ndarray:
    return np.array([f"p{i:03d}" for i in range(n)])


# --- draws -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=2, max_size=14),
    st.integers(0, 99),
)
def test_patients_are_drawn_whole_and_classes_kept_where_patients_have_one(
    cases: list[tuple[int, int]], seed: int
) -> None:
    patient = np.array([p for p, _ in cases])
    y = np.array([c for _, c in cases])
    who = resampling.sample("classification", y, patient, n_classes=2)
    counts = resampling.patient_draws(who, 40, seed)
    drawn = counts[:, who.member]  # what each case counts
    assert (counts.sum(1) == len(set(patient))).all()
    for p in set(patient):
        assert (np.ptp(drawn[:, patient == p], axis=1) == 0).all()
    classes_of = {p: set(y[patient == p]) for p in set(patient)}
    if all(len(c) == 1 for c in classes_of.values()):
        for c in set(y):
            of_class = [i for i, p in enumerate(sorted(set(patient))) if classes_of[p] == {c}]
            assert (counts[:, of_class].sum(1) == len(of_class)).all()
    else:
        assert set(who.stratum) == {0}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_a_bootstrap_draw_is_the_metric_of_the_repeated_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    patient = rng.integers(12, size=30)
    y = (patient % 2) ^ (rng.random(30) < 0.1)
    p = probabilities(rng.normal(size=30).round(1))
    who = resampling.sample("classification", y, patient, n_classes=2)
    counts = resampling.patient_draws(who, 10, seed)
    fast = AUROC(y, p, counts[:, who.member])
    patients = np.unique(patient)
    for b in range(10):
        drawn = np.repeat(patients, counts[b].astype(int))
        rows = np.concatenate([np.flatnonzero(patient == i) for i in drawn])
        slow = roc_auc_score(y[rows], p[rows, 1]) if len(set(y[rows])) == 2 else np.nan
        assert fast[b] == pytest.approx(slow, abs=1e-12, nan_ok=True)


def test_the_corrected_variance_of_auroc_is_the_unbiased_one() -> None:
    y, p = classes(24, signal=1.5)
    who = resampling.sample("classification", y, people(24), n_classes=2)
    counts = resampling.patient_draws(who, 40_000, 0)
    found = resampling.spread(AUROC(y, p, counts), counts, who, pairs=True)
    # theta^2 is estimated without bias from all pairs of pairs that share no case
    right = (p[y == 1, 1][:, None] > p[y == 0, 1]).astype(float)
    m, n = right.shape
    square = right.sum() ** 2
    rows, columns, both = (right.sum(1) ** 2).sum(), (right.sum(0) ** 2).sum(), (right**2).sum()
    apart = (square - rows - columns + both) / (m * (m - 1) * n * (n - 1))
    unbiased = (right.mean()) ** 2 - apart
    assert found.variance == pytest.approx(unbiased, rel=0.06)
    assert AUROC(y, p, counts).var() > 1.2 * unbiased
    assert 11 <= found.freedom <= 22


def test_the_same_seed_gives_the_same_interval_and_row_order_does_not_matter() -> None:
    y, p = classes()
    first = score_interval(AUROC, y, p, people())
    assert score_interval(AUROC, y, p, people()) == first
    shuffled = np.random.default_rng(1).permutation(N)
    assert score_interval(AUROC, y[shuffled], p[shuffled], people()[shuffled]) == first
    assert score_interval(AUROC, y, p, people(), seed=1) != first


# --- intervals -------------------------------------------------------------------------------


def test_more_images_of_the_same_patients_are_no_further_evidence() -> None:
    y, p = classes()
    once = score_interval(AUROC, y, p, people())
    five = score_interval(AUROC, np.tile(y, 5), np.tile(p, (5, 1)), np.tile(people(), 5))
    assert (five.low, five.high) == pytest.approx((once.low, once.high))
    as_if_independent = score_interval(AUROC, np.tile(y, 5), np.tile(p, (5, 1)), people(5 * N))
    assert as_if_independent.high - as_if_independent.low < 0.6 * (once.high - once.low)


@pytest.mark.parametrize("name", ["auroc", "average_precision", "balanced_accuracy"])
@pytest.mark.parametrize("n", [4, 20, 200])
def test_a_perfect_score_is_not_certain(name: str, n: int) -> None:
    y = np.arange(n) % 2
    found = score_interval(metrics.get(name), y, np.eye(2)[y], people(n))
    assert found.score == 1.0
    assert 1 - 12 / n <= found.low < 1 - 1 / n
    assert found.high == pytest.approx(1.0)
    assert "degenerate" in found.flags


@pytest.mark.parametrize("name", ["brier", "ece"])
def test_a_perfect_calibration_is_not_certain(name: str) -> None:
    y = np.arange(20) % 2
    found = score_interval(metrics.get(name), y, np.eye(2)[y], people(20))
    assert found.score == found.low == pytest.approx(0)
    assert 0.05 < found.high < 0.4


@pytest.mark.parametrize("name", ["mae", "r2", "pearson"])
def test_perfect_values_have_no_interval(name: str) -> None:
    y = np.linspace(0, 1, 20)
    found = score_interval(metrics.get(name), y, y, people(20))
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert "degenerate" in found.flags


def test_almost_perfect_is_not_less_certain_than_perfect_by_much() -> None:
    y = np.arange(20) % 2
    odds = 2.0 * y + np.linspace(0, 0.1, 20)
    perfect = score_interval(AUROC, y, probabilities(odds), people(20))
    odds[1] = -0.01  # one positive below one negative
    almost = score_interval(AUROC, y, probabilities(odds), people(20))
    assert almost.score < perfect.score
    assert almost.low <= perfect.low + 0.02


def test_an_undefined_score_has_no_interval() -> None:
    found = score_interval(AUROC, np.zeros(10, int), classes(10)[1], people(10))
    assert np.isnan([found.score, found.low, found.high]).all()
    assert "undefined" in found.flags


@pytest.mark.parametrize(
    "name", [m.name for kind in ("classification", "regression") for m in metrics.for_kind(kind)]
)
def test_the_score_lies_in_its_interval_and_the_interval_in_the_range(name: str) -> None:
    metric = metrics.get(name)
    rng = np.random.default_rng(2)
    if metric.kind == "classification":
        y, p = classes()
    else:
        y = rng.normal(size=N)
        p = y + rng.normal(size=N)
    found = score_interval(metric, y, p, people())
    assert metric.low <= found.low < found.score < found.high <= metric.high
    assert set(found.flags) <= set(FLAGS)


def test_few_patients_in_the_smaller_class_are_flagged() -> None:
    rng = np.random.default_rng(0)
    p = probabilities(rng.normal(size=N))
    for positives, flagged in ((9, True), (10, False)):
        y = (np.arange(N) < positives).astype(int)
        assert ("few_positives" in score_interval(AUROC, y, p, people()).flags) == flagged
    # nine patients with two positive images each are nine
    y = (np.arange(N) < 18).astype(int)
    pairs = np.concatenate([np.repeat(np.arange(9), 2), np.arange(100, 100 + N - 18)])
    assert "few_positives" in score_interval(AUROC, y, p, pairs).flags


def test_training_seeds_that_disagree_widen_the_interval() -> None:
    y, _ = classes()
    rng = np.random.default_rng(3)
    shared = rng.normal(size=N)
    alike = probabilities(np.stack([y + shared] * 5))
    one = score_interval(AUROC, y, alike[0], people())
    same = score_interval(AUROC, y, alike, people())
    assert (same.low, same.high) == pytest.approx((one.low, one.high), abs=0.02)
    signal = np.array([0.0, 0.5, 1.0, 1.5, 3.0])[:, None]
    spread = probabilities(signal * y + shared)
    assert score_interval(AUROC, y, spread, people()).score == pytest.approx(
        np.mean([AUROC(y, p) for p in spread])
    )
    wide = score_interval(AUROC, y, spread, people())
    assert wide.high - wide.low > 1.3 * (same.high - same.low)


# --- differences -------------------------------------------------------------------------------


def test_a_difference_is_antisymmetric_and_paired() -> None:
    y, a = classes(seed=0)
    rng = np.random.default_rng(1)
    odds = np.log(a[:, 1] / a[:, 0])
    b = probabilities(odds + 0.1 * rng.normal(size=N))
    there, back = (
        paired_difference(AUROC, y, a, b, people()),
        paired_difference(AUROC, y, b, a, people()),
    )
    assert there.delta == pytest.approx(AUROC(y, a) - AUROC(y, b))
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p == pytest.approx(back.p)
    # nearly the same predictions: the difference is known much better than either score
    alone = score_interval(AUROC, y, a, people())
    assert there.high - there.low < 0.3 * (alone.high - alone.low)


def test_a_model_does_not_differ_from_itself() -> None:
    y, p = classes()
    found = paired_difference(AUROC, y, p, p, people())
    assert (found.delta, found.p, found.significant) == (0, 1, False)


def test_two_perfect_models_may_still_differ() -> None:
    y = np.arange(20) % 2
    rng = np.random.default_rng(0)
    a, b = (probabilities(5 * y + rng.random(20)) for _ in range(2))
    found = paired_difference(AUROC, y, a, b, people(20))
    assert found.low < -0.05
    assert found.high > 0.05
    assert found.p == 1


def test_perfect_against_useless_is_significant_and_bounded() -> None:
    y = np.arange(N) % 2
    useless = np.full((N, 2), 0.5)
    found = paired_difference(AUROC, y, np.eye(2)[y], useless, people())
    assert found.delta == 0.5
    assert found.significant
    assert -1 <= found.low <= found.delta <= found.high <= 1


def test_a_large_difference_is_found_and_an_undefined_one_is_not() -> None:
    y, good = classes(200, seed=0, signal=3)
    _, bad = classes(200, seed=1, signal=0)
    found = paired_difference(AUROC, y, good, bad, people(200))
    assert found.significant
    assert found.low > 0
    nothing = paired_difference(AUROC, np.zeros(200, int), good, bad, people(200))
    assert np.isnan(nothing.p)
    assert nothing.significant is None


# --- Holm ----------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.02, 0.03, 0.5]).tolist() == pytest.approx([0.04, 0.06, 0.06, 0.5])
    assert holm([0.6, 0.6]).tolist() == [1, 1]
    assert holm([]).tolist() == []


def test_holm_does_not_count_what_is_not_known() -> None:
    adjusted = holm([0.01, np.nan, 0.02])
    assert np.isnan(adjusted[1])
    assert adjusted[[0, 2]].tolist() == pytest.approx([0.02, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_its_step_down_definition(p_values: list[float]) -> None:
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(i)
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= 0.05} == rejected
    assert (adjusted >= np.array(p_values)).all()


# --- repeated cross-validation -------------------------------------------------------------------


def repeats(n: int, count: int = 5, seed: int = 0, signal: float = 1.0) -> tuple:
    """Targets, (R, N, 2) predictions that share most of their noise, (R, N) folds."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    odds = signal * y + rng.normal(size=n) + 0.3 * rng.normal(size=(count, n))
    return y, probabilities(odds), rng.integers(5, size=(count, n))


def test_repeats_are_not_further_evidence() -> None:
    y, p, fold = repeats(N, count=1)
    one = cv_interval(AUROC, y, p, people(), fold, width=64)
    again = cv_interval(AUROC, y, np.repeat(p, 5, 0), people(), np.repeat(fold, 5, 0), width=64)
    assert (again.score, again.low, again.high) == pytest.approx((one.score, one.low, one.high))


def test_repeats_are_averaged() -> None:
    y, p, fold = repeats(N)
    found = cv_interval(AUROC, y, p, people(), fold, width=64)
    assert found.score == pytest.approx(
        np.mean([AUROC(y, q, fold=f) for q, f in zip(p, fold, strict=True)])
    )
    assert found.low < found.score < found.high


def test_a_model_that_knows_only_the_share_of_classes_in_training_scores_a_half() -> None:
    rng = np.random.default_rng(0)
    y, fold = rng.integers(2, size=50), rng.integers(5, size=(5, 50))
    prior = np.array([[y[f != k].mean() for k in f] for f in fold])
    p = np.stack([1 - prior, prior], -1)
    pooled = np.mean([AUROC(y, q) for q in p])
    assert pooled < 0.4  # over all folds, knowing nothing looks like knowing the inverse
    assert cv_interval(AUROC, y, p, people(50), fold, width=32).score == 0.5


def test_an_interval_under_cross_validation_is_wider_than_that_of_a_test_set() -> None:
    y, p, _ = repeats(N, count=1)
    one_fold = np.zeros((1, N), int)
    cv = cv_interval(AUROC, y, p, people(), one_fold, width=64)
    split = score_interval(AUROC, y, p[0], people())
    assert cv.score == split.score
    assert cv.high - cv.low > 1.1 * (split.high - split.low)


def test_a_perfect_score_under_cross_validation_is_not_certain() -> None:
    y, _, fold = repeats(N)
    found = cv_interval(AUROC, y, np.stack([np.eye(2)[y]] * 5), people(), fold, width=64)
    assert found.score == 1.0
    assert found.low < 0.97


@pytest.mark.parametrize(
    ("n", "width", "known"),
    [(60, 64, True), (60, 2048, True), (60, 4096, False), (60, 16, False), (24, 64, False)],
)
def test_outside_the_simulated_range_no_significance_is_shown(
    n: int, width: int, known: bool
) -> None:
    y, a, fold = repeats(n, seed=0, signal=1.5)
    _, b, _ = repeats(n, seed=1, signal=0.5)
    found = cv_interval(AUROC, y, a, people(n), fold, width)
    assert ("uncalibrated" not in found.flags) == known
    assert found.low < found.score < found.high
    gap = cv_difference(AUROC, y, a, b, people(n), fold, width)
    assert (gap.significant is not None) == known
    assert gap.low < gap.delta < gap.high


def test_scores_above_the_simulated_ones_are_not_calibrated() -> None:
    y, p, fold = repeats(N, signal=4)
    found = cv_interval(AUROC, y, p, people(), fold, width=64)
    assert found.score > 0.96
    assert "uncalibrated" in found.flags


def test_only_two_class_auroc_is_calibrated() -> None:
    y, p, fold = repeats(N)
    for metric in metrics.for_kind("classification"):
        found = cv_interval(metric, y, p, people(), fold, width=64)
        assert ("uncalibrated" in found.flags) == (metric.name != "auroc")
        assert found.low < found.score < found.high
    three = np.stack([np.random.default_rng(r).dirichlet(np.ones(3), N) for r in range(5)])
    assert "uncalibrated" in cv_interval(AUROC, np.arange(N) % 3, three, people(), fold, 64).flags
    values = np.random.default_rng(0).normal(size=(5, N))
    for metric in metrics.for_kind("regression"):
        found = cv_interval(metric, values[0], values, people(), fold, width=64)
        assert "uncalibrated" in found.flags


# --- the table -----------------------------------------------------------------------------------


def table() -> list[dict[str, str]]:
    with Path(inflation.__file__).with_name("inflation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_covers_what_it_promises() -> None:
    rows = table()
    for of in ("score", "difference"):
        mine = [r for r in rows if r["of"] == of]
        assert {30, 51, 100, 200} <= {int(r["n"]) for r in mine}
        assert {32, 512} <= {int(r["width"]) for r in mine}
        assert {0.5, 0.6, 0.7, 0.8, 0.9, 0.95} <= {float(r["auroc"]) for r in mine}
    for row in rows:
        assert float(row["factor"]) >= 1
        missed = float(row["factor"]) - float(row["simulated"])
        assert abs(missed) < 4 * float(row["error"])  # smoothing stays within the noise
        assert int(row["studies"]) >= 80
        assert abs(float(row["truth"]) - float(row["auroc"])) < 0.03


def test_factors_are_interpolated_between_cells_and_held_beyond() -> None:
    cells = {
        (r["of"], int(r["n"]), int(r["width"]), float(r["auroc"])): float(r["factor"])
        for r in table()
    }
    at = inflation.factor("score", 51, 512, 0.8)
    assert at == (pytest.approx(cells["score", 51, 512, 0.8]), True)
    ends = sorted([cells["score", 51, 512, 0.8], cells["score", 51, 512, 0.9]])
    assert ends[0] <= inflation.factor("score", 51, 512, 0.85)[0] <= ends[1]
    corners = [cells["difference", n, w, 0.7] for n in (51, 100) for w in (32, 512)]
    assert min(corners) <= inflation.factor("difference", 70, 128, 0.7)[0] <= max(corners)
    assert inflation.factor("score", 20, 512, 0.8) == (
        pytest.approx(cells["score", 30, 512, 0.8]),
        False,
    )
    # chance scores below one half: they belong to the cell of one half
    assert inflation.factor("score", 51, 512, 0.4) == (
        pytest.approx(cells["score", 51, 512, 0.5]),
        True,
    )
    assert not inflation.factor("score", 51, 512, 0.97)[1]
    assert inflation.largest("score", 51, 512) == max(
        factor for (of, n, w, _), factor in cells.items() if (of, n, w) == ("score", 51, 512)
    )


@pytest.mark.parametrize(("width", "signal"), [(10, 0.5), (80, 0.5), (30, 3.0), (80, 3.0)])
@pytest.mark.parametrize("c", [1e-4, 0.1, 10.0])
def test_simulated_fits_are_those_of_the_probe(width: int, signal: float, c: float) -> None:
    rng = np.random.default_rng(width)
    y = np.arange(50) % 2
    x = 3 + 2 * rng.normal(size=(50, width)) + signal * y[:, None]
    train = (rng.random((3, 50)) < 0.8).astype(float)
    w, intercept = newton.fold_models(x, y, train, c)
    for k in range(3):
        rows = train[k] > 0
        scaled = (x - x[rows].mean(0)) / x[rows].std(0)
        model = LogisticRegression(C=c, tol=1e-10, max_iter=100_000).fit(scaled[rows], y[rows])
        odds = model.decision_function(scaled)
        assert x @ w[k] + intercept[k] == pytest.approx(odds, abs=1e-4 * np.abs(odds).max())


def test_the_simulated_truth_is_the_auroc_on_new_patients() -> None:
    like = simulation.Design(delta=2.0, c=0.1)
    study = simulation.study(40, 8, like, number=0, seed=0)
    rng = np.random.default_rng(1)
    y = np.arange(20_000) % 2
    x = rng.normal(size=(len(y), 8)) + like.delta / np.sqrt(8) * y[:, None]
    # the best direction is an upper limit that 32 training patients come near
    best = roc_auc_score(y, x.sum(1))
    assert best - 0.1 < study.truth.min() <= study.truth.max() < best + 0.01
    nothing = simulation.study(40, 8, simulation.Design(delta=0.0, c=0.1), number=0, seed=0)
    assert nothing.truth == pytest.approx([0.5, 0.5])


def test_every_protocol_says_what_its_interval_is_about() -> None:
    assert set(ESTIMANDS) == {"split", "seeds", "cv"}
    assert all(text.endswith(".") for text in ESTIMANDS.values())
    assert statistics.DRAWS == 2000
