"""Dice, NSD and HD95 of a task: means over classes of means over cases, and their intervals."""

import math

import numpy as np
import pandas as pd
import pytest

from tomoprobe.benchmark import metrics
from tomoprobe.benchmark.metrics import Metric, segmentation
from tomoprobe.benchmark.predictions import stacked
from tomoprobe.benchmark.statistics import paired_difference, score_interval

NAMES = ("dice", "hd95", "nsd")


def scores(n: int = 12, classes: int = 3, seed: int = 0) -> np.ndarray:
    """(N, K-1), every sixth missing."""
    rng = np.random.default_rng(seed)
    values = rng.beta(8, 2, (n, classes))
    values[rng.random(values.shape) < 1 / 6] = np.nan
    return values


def score(metric: Metric, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    target = np.isfinite(values)
    return np.asarray(
        metric(target, values) if weights is None else metric(target, values, weights)
    )


def by_hand(values: np.ndarray) -> float:
    means = [
        np.mean(column[~np.isnan(column)]) for column in values.T if not np.isnan(column).all()
    ]
    return float(np.mean(means)) if means else math.nan


def table(values: np.ndarray) -> pd.DataFrame:
    columns = {f"{name}_{k + 1}": values[:, k] for k in range(values.shape[1]) for name in NAMES}
    case = [f"case{i:03d}" for i in range(len(values))]
    about = {"repeat": 0, "fold": 0, "refit": -1, "case": case, "patient": case}
    return pd.DataFrame({**about, **columns})


def test_the_folder_lists_them() -> None:
    assert tuple(m.name for m in metrics.for_kind("segmentation")) == NAMES
    assert [metrics.get(name).higher_is_better for name in NAMES] == [True, False, True]
    assert metrics.get("hd95").unit == "mm" and metrics.get("hd95").high == math.inf


@pytest.mark.parametrize("name", NAMES)
def test_every_class_counts_the_same(name: str) -> None:
    values = np.array([[0.8, 0.2], [0.6, np.nan], [0.4, np.nan]])
    assert score(metrics.get(name), values) == pytest.approx((0.6 + 0.2) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_repeated_cases(name: str) -> None:
    metric, values = metrics.get(name), scores()
    weights = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), 40)
    expected = [by_hand(np.repeat(values, times, axis=0)) for times in weights]
    assert score(metric, values, weights) == pytest.approx(expected)
    assert score(metric, values) == pytest.approx(by_hand(values))


def test_a_class_that_nobody_in_a_draw_has_is_left_out() -> None:
    values = np.array([[0.9, np.nan], [0.5, 0.1]])
    drawn = score(metrics.get("dice"), values, np.array([[2, 0], [0, 2]]))
    assert drawn.tolist() == [0.9, pytest.approx(0.3)]
    assert math.isnan(float(score(metrics.get("dice"), np.full((3, 2), np.nan))))


def test_columns_are_read_by_class_however_many_there_are() -> None:
    values = scores(classes=11)
    read = metrics.get("nsd").read(table(values))
    assert np.array_equal(read.prediction, values, equal_nan=True)
    assert np.array_equal(read.target, np.isfinite(values))
    assert segmentation.per_class(table(values))["hd95"] == pytest.approx(
        np.nanmean(values, axis=0)
    )


def test_per_class_says_where_no_case_counts() -> None:
    values = np.array([[0.5, np.nan], [0.7, np.nan]])
    found = segmentation.per_class(table(values))
    assert set(found) == set(NAMES)
    assert found["dice"][0] == pytest.approx(0.6) and math.isnan(found["dice"][1])


def test_what_ignores_the_image_is_taken_to_draw_nothing_rightly() -> None:
    target = np.ones((3, 2), bool)
    assert metrics.get("dice").chance(target) == metrics.get("nsd").chance(target) == 0
    assert math.isnan(metrics.get("hd95").chance(target))


@pytest.mark.parametrize("name", NAMES)
def test_the_interval_of_a_mean_is_as_wide_as_its_cases_vary(name: str) -> None:
    """About the t-interval, not one of hits and misses, which would be seven times as wide."""
    metric = metrics.get(name)
    values = np.random.default_rng(2).beta(40, 6, (50, 1))
    tested = stacked(table(values), metric)
    found = score_interval(metric, tested.target, tested.values, tested.patient, draws=500)
    half = 2.01 * values.std(ddof=1) / math.sqrt(len(values))
    assert found.score == pytest.approx(values.mean()) and not found.flags
    assert found.low < found.score < found.high
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)


def test_intervals_cover() -> None:
    """Skewed scores near 1, and tumours of which a quarter is missed altogether."""
    metric, rng = metrics.get("dice"), np.random.default_rng(3)
    for truth, draw in (
        (40 / 46, lambda: rng.beta(40, 6, (25, 1))),
        (0.45, lambda: rng.beta(6, 4, (25, 1)) * (rng.random((25, 1)) > 0.25)),
    ):
        inside = 0
        for seed in range(60):
            values = draw()
            target, who = np.ones(values.shape, bool), np.arange(25)
            found = score_interval(metric, target, values[None], who, seed, draws=200)
            inside += found.low <= truth <= found.high
        assert 51 <= inside <= 60


def test_a_perfect_score_is_no_certainty_and_several_seeds_are_one_mean() -> None:
    metric, who = metrics.get("dice"), np.arange(30)
    perfect = np.ones((1, 30, 2))
    found = score_interval(metric, perfect[0] > 0, perfect, who, draws=100)
    assert found.score == 1 and 0.8 < found.low < 1 and "degenerate" in found.flags
    seeds = np.stack([scores(30, seed=1) - 0.02 * k for k in range(3)])
    many = score_interval(metric, np.isfinite(seeds[0]), seeds, who, draws=300)
    assert many.score == pytest.approx(np.mean([by_hand(s) for s in seeds]))
    one = score_interval(metric, np.isfinite(seeds[0]), seeds[1:2], who, draws=300)
    assert many.high - many.low > one.high - one.low, "seeds vary, too"


def test_a_difference_is_paired() -> None:
    metric, who = metrics.get("dice"), np.arange(40)
    a = scores(40, seed=4)
    rng = np.random.default_rng(5)
    b = a - 0.02 - 0.005 * rng.standard_normal(a.shape)
    found = paired_difference(metric, np.isfinite(a), a[None], b[None], who, draws=300)
    assert found.delta == pytest.approx(0.02, abs=0.003)
    assert found.significant and found.high - found.low < 0.01
