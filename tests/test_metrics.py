"""Every metric: equal to scikit-learn where that is defined, NaN without noise where it is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn import metrics as sklearn

from tomoprobe.benchmark import metrics
from tomoprobe.benchmark.errors import ProbeError, UnknownNameError
from tomoprobe.benchmark.metrics import Metric

NAMES = ("auroc", "average_precision", "balanced_accuracy", "brier", "ece", "mae", "pearson", "r2")


def reference(name: str, y: np.ndarray, p: np.ndarray, w: np.ndarray | None = None) -> float:
    """The same by scikit-learn (or, where it has none, by definition), for all classes present."""
    if name in ("mae", "r2", "pearson"):
        if name == "mae":
            return float(sklearn.mean_absolute_error(y, p, sample_weight=w))
        if name == "r2":
            return float(sklearn.r2_score(y, p, sample_weight=w))
        times = np.ones(len(y), int) if w is None else w.astype(int)
        return float(stats.pearsonr(np.repeat(y, times), np.repeat(p, times))[0])
    k = p.shape[1]
    onehot = np.eye(k)[y]
    if name == "auroc":
        if k == 2:
            return float(sklearn.roc_auc_score(y, p[:, 1], sample_weight=w))
        per_class = [
            sklearn.roc_auc_score(onehot[:, c], p[:, c], sample_weight=w) for c in range(k)
        ]
        return float(np.mean(per_class))
    if name == "average_precision":
        if k == 2:
            return float(sklearn.average_precision_score(y, p[:, 1], sample_weight=w))
        return float(sklearn.average_precision_score(onehot, p, sample_weight=w))
    if name == "balanced_accuracy":
        return float(sklearn.balanced_accuracy_score(y, p.argmax(1), sample_weight=w))
    if name == "brier":
        return float(
            sklearn.brier_score_loss(
                y, p, sample_weight=w, labels=list(range(k)), scale_by_half=True
            )
        )
    weight = np.ones(len(y)) if w is None else w
    confidence, right = p.max(1), p.argmax(1) == y
    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if weight[inside].sum() > 0:
            accuracy = np.average(right[inside], weights=weight[inside])
            mean = np.average(confidence[inside], weights=weight[inside])
            total += weight[inside].sum() / weight.sum() * abs(accuracy - mean)
    return total


def made(metric: Metric, rng: np.random.Generator, n: int, k: int, tied: bool) -> tuple:
    """Targets with every class, and predictions that are somewhat right."""
    if metric.kind == "regression":
        y = rng.normal(50, 10, n)
        p = 0.5 * y + rng.normal(0, 5, n)
        return (y.round(-1), p.round(-1)) if tied else (y, p)
    y = np.concatenate([np.arange(k), np.arange(k), rng.integers(k, size=n - 2 * k)])
    p = rng.random((n, k)) + 0.4 * np.eye(k)[y]
    if tied:
        p = np.ceil(p * 3)
    return y, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n", [20, 301])
def test_equals_scikit_learn_weighted_and_not(name: str, k: int, tied: bool, n: int) -> None:
    metric = metrics.get(name)
    rng = np.random.default_rng(n + k)
    y, p = made(metric, rng, n, k, tied)
    assert metric(y, p) == pytest.approx(reference(name, y, p), abs=1e-9)
    # at least one of each class, so that scikit-learn is defined in every draw
    weights = rng.integers(0, 4, size=(20, n))
    weights[:, : 2 * k] += 1
    wanted = [reference(name, y, p, w) for w in weights]
    assert metric(y, p, weights) == pytest.approx(wanted, abs=1e-9)


def test_names_of_classification_and_regression_are_those_of_the_result_format() -> None:
    assert {
        m.name for kind in ("classification", "regression") for m in metrics.for_kind(kind)
    } == (set(NAMES))
    assert {m.name for m in metrics.for_kind("regression")} == {"mae", "pearson", "r2"}


def test_an_unknown_metric_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'auroc'"):
        metrics.get("auroq")


# --- degenerate input --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auroc", "average_precision", "balanced_accuracy"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("only", [0, 1])
def test_one_class_alone_has_no_score(name: str, k: int, only: int) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(k), size=12)
    y = np.full(12, only)
    assert np.isnan(metrics.get(name)(y, p))
    assert np.isnan(metrics.get(name)(y, p, np.ones((3, 12), int))).all()


@pytest.mark.parametrize("name", ["brier", "ece"])
def test_calibration_is_defined_for_one_class(name: str) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(2), size=12)
    y = np.zeros(12, int)
    assert metrics.get(name)(y, p) == pytest.approx(reference(name, y, p))


def test_a_draw_without_a_class_is_nan_and_the_others_are_not() -> None:
    y = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]])
    weights = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])
    for name in ("auroc", "average_precision", "balanced_accuracy"):
        scores = metrics.get(name)(y, p, weights)
        assert np.isnan(scores).tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["auroc", "average_precision", "balanced_accuracy"])
def test_a_class_that_is_missing_is_left_out_of_the_mean(name: str) -> None:
    rng = np.random.default_rng(3)
    y = np.array([0, 1] * 20)
    p = rng.dirichlet(np.ones(3), size=40)
    if name == "balanced_accuracy":
        wanted = np.mean([(p[y == c].argmax(1) == c).mean() for c in (0, 1)])
    else:
        score = {
            "auroc": sklearn.roc_auc_score,
            "average_precision": sklearn.average_precision_score,
        }[name]
        wanted = np.mean([score(y == c, p[:, c]) for c in (0, 1)])
    assert metrics.get(name)(y, p) == pytest.approx(wanted)


def test_a_constant_prediction_scores_chance() -> None:
    y = np.array([0] * 13 + [1] * 7)
    shares = np.tile([0.65, 0.35], (20, 1))
    for metric in metrics.for_kind("classification"):
        assert metric(y, shares) == pytest.approx(metric.chance(y)), metric.name
    y = np.repeat([0, 1, 2], [5, 3, 12])
    shares = np.tile([0.25, 0.15, 0.6], (20, 1))
    for metric in metrics.for_kind("classification"):
        assert metric(y, shares) == pytest.approx(metric.chance(y)), metric.name


def test_the_best_constant_value_scores_chance() -> None:
    y = np.random.default_rng(0).gamma(2.0, size=31)
    mae, r2 = metrics.get("mae"), metrics.get("r2")
    assert mae(y, np.full(31, np.median(y))) == pytest.approx(mae.chance(y))
    assert r2(y, np.full(31, y.mean())) == pytest.approx(r2.chance(y), abs=1e-12)


def test_constants_have_no_correlation_and_no_share_of_variance() -> None:
    varied, constant = np.linspace(0, 1, 9), np.full(9, 0.1)
    pearson, r2 = metrics.get("pearson"), metrics.get("r2")
    assert np.isnan(pearson(varied, constant))
    assert np.isnan(pearson(constant, varied))
    assert np.isnan(r2(constant, varied))
    assert r2(varied, constant) == pytest.approx(sklearn.r2_score(varied, constant))
    one_patient = np.zeros((1, 9), int)
    one_patient[0, 4] = 9  # a draw of one patient nine times is constant, too
    assert np.isnan(pearson(varied, varied**2, one_patient)).all()
    assert np.isnan(r2(varied, varied**2, one_patient)).all()


def test_correlation_survives_a_large_offset() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=50)
    p = y + rng.normal(size=50)
    wanted = stats.pearsonr(y, p)[0]
    assert metrics.get("pearson")(y + 1e6, p - 1e6) == pytest.approx(wanted, abs=1e-6)


def test_predictions_that_do_not_fit_are_refused() -> None:
    y = np.array([0, 1, 2])
    auroc, mae = metrics.get("auroc"), metrics.get("mae")
    with pytest.raises(ProbeError, match="one column per class"):
        auroc(y, np.full((3, 2), 0.5))
    with pytest.raises(ProbeError, match="class probabilities"):
        auroc(y, np.full(3, 0.5))
    with pytest.raises(ProbeError, match="one row per case"):
        mae(y, np.zeros(4))
    with pytest.raises(ProbeError, match="NaN"):
        mae(y, np.array([0.0, np.nan, 1.0]))


# --- properties ----------------------------------------------------------------------------


@st.composite
def classified(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, tied probabilities, multiplicities."""
    n, k = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    y = draw(arrays(np.int64, n, elements=st.integers(0, k - 1)))
    p = draw(arrays(np.int64, (n, k), elements=st.integers(1, 4))).astype(float)
    w = draw(arrays(np.int64, n, elements=st.integers(0, 3)).filter(lambda w: w.sum() > 0))
    return y, p / p.sum(1, keepdims=True), w


@st.composite
def measured(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, values, multiplicities."""
    n = draw(st.integers(1, 12))
    values = arrays(np.float64, n, elements=st.integers(-20, 20).map(lambda i: i / 4))
    w = draw(arrays(np.int64, n, elements=st.integers(0, 3)).filter(lambda w: w.sum() > 0))
    return draw(values), draw(values), w


def assert_weights_repeat(kind: str, y: np.ndarray, p: np.ndarray, w: np.ndarray) -> None:
    again = np.repeat(np.arange(len(y)), w)
    for metric in metrics.for_kind(kind):  # type: ignore[arg-type]
        weighted = float(metric(y, p, w[None])[0])
        assert weighted == pytest.approx(metric(y[again], p[again]), abs=1e-9, nan_ok=True)
        assert np.isnan(weighted) or metric.low - 1e-12 <= weighted <= metric.high + 1e-12


@settings(deadline=None, max_examples=150)
@given(classified())
def test_weighting_a_class_prediction_is_repeating_its_rows(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    assert_weights_repeat("classification", *case)


@settings(deadline=None, max_examples=150)
@given(measured())
def test_weighting_a_value_is_repeating_its_rows(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    assert_weights_repeat("regression", *case)


# --- calibration -----------------------------------------------------------------------------


def test_calibration_error_by_hand() -> None:
    # bin (9/15, 10/15]: 2 cases at 0.65, one right; bin (13/15, 14/15]: 1 case at 0.9, wrong
    y = np.array([0, 1, 0])
    p = np.array([[0.65, 0.35], [0.65, 0.35], [0.1, 0.9]])
    assert metrics.get("ece")(y, p) == pytest.approx(2 / 3 * 0.15 + 1 / 3 * 0.9)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    # 0.4 = 6/15 and 0.41 lie in different bins, so that their gaps do not cancel
    y = np.array([0, 1])
    p = np.array([[0.4, 0.3, 0.3], [0.41, 0.3, 0.29]])
    assert metrics.get("ece")(y, p) == pytest.approx((0.6 + 0.41) / 2)


def test_brier_is_the_squared_error_of_the_positive_class() -> None:
    y = np.array([0, 1, 1, 0])
    p1 = np.array([0.2, 0.7, 1.0, 0.5])
    assert metrics.get("brier")(y, np.stack([1 - p1, p1], 1)) == pytest.approx(
        sklearn.brier_score_loss(y, p1)
    )


# --- folds -----------------------------------------------------------------------------------


def test_auroc_compares_cases_of_one_fold_only() -> None:
    rng = np.random.default_rng(0)
    fold = rng.integers(4, size=60)
    y = rng.integers(2, size=60)
    score = rng.random(60).round(1)
    right = pairs = 0.0
    for i in np.flatnonzero(y == 1):
        for j in np.flatnonzero((y == 0) & (fold == fold[i])):
            pairs += 1
            right += (score[i] > score[j]) + 0.5 * (score[i] == score[j])
    p = np.stack([1 - score, score], 1)
    auroc = metrics.get("auroc")
    assert auroc(y, p, fold=fold) == pytest.approx(right / pairs)
    # another offset and scale for the model of each fold changes nothing
    moved = score * (fold + 1) + 10 * fold
    assert auroc(y, np.stack([-moved, moved], 1), fold=fold) == pytest.approx(right / pairs)


def test_pearson_compares_cases_of_one_fold_only() -> None:
    rng = np.random.default_rng(0)
    fold = rng.integers(4, size=80)
    y = rng.normal(size=80)
    p = 0.5 * y + rng.normal(size=80)
    within = [v - np.array([v[fold == f].mean() for f in range(4)])[fold] for v in (y, p)]
    pearson = metrics.get("pearson")
    assert pearson(y, p, fold=fold) == pytest.approx(stats.pearsonr(*within)[0])
    assert pearson(y, p + 100 * fold, fold=fold) == pytest.approx(stats.pearsonr(*within)[0])
