"""The few-shot probe: one published model of the support, and of nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from tomoprobe.benchmark import probes
from tomoprobe.benchmark.errors import ProbeError
from tomoprobe.benchmark.types import Features

PROBE = probes.get("few_shot")


def support(shots: int = 5, n_classes: int = 3, width: int = 40, seed: int = 0) -> Features:
    """``shots`` patients per class, and 12 of test; far from the origin, as features are."""
    rng = np.random.default_rng(seed)
    n = shots * n_classes
    y = np.arange(n + 12) % n_classes
    x = rng.normal(size=(n + 12, width)) + 2 * rng.normal(size=(n_classes, width))[y] + 3
    side = np.array(["train"] * n + ["test"] * 12)
    target = np.where(side == "test", -1, y)
    patient = np.array([f"p{i}" for i in range(n + 12)])
    return Features(x.astype(np.float32), target, side, patient, "classification", n_classes)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("shots", [1, 5, 20])
def test_it_is_scikit_learns_default_on_normalised_rows(n_classes: int, shots: int) -> None:
    """Without centring here: with an intercept that is not penalised it changes nothing."""
    features = support(shots, n_classes)
    rows = normalize(features.x.astype(np.float64))
    train = features.split == "train"
    model = LogisticRegression(C=1.0, tol=1e-9, max_iter=10_000)
    model.fit(rows[train], features.target[train])
    predictions = PROBE(features, 0, 0)
    np.testing.assert_allclose(predictions.values, model.predict_proba(rows[~train]), atol=1e-5)
    assert predictions.refits.shape == (0, 12, n_classes)
    assert predictions.chosen == {"C": 1.0}


def test_the_length_of_a_row_does_not_matter() -> None:
    features = support()
    length = np.random.default_rng(0).uniform(0.01, 100, (len(features.x), 1)).astype(np.float32)
    values = PROBE(features, 0, 0).values
    again = PROBE(replace(features, x=features.x * length), 0, 0).values
    np.testing.assert_allclose(again, values, atol=1e-5)


def test_rows_of_zeros_are_served() -> None:
    features = support()
    x = features.x.copy()
    x[0] = x[-1] = 0
    values = PROBE(replace(features, x=x), 0, 0).values
    assert np.isfinite(values).all()
    nothing = PROBE(replace(features, x=np.zeros_like(x)), 0, 0).values
    np.testing.assert_allclose(nothing, 1 / 3, atol=1e-9)


def test_a_class_that_the_support_lacks_gets_no_probability() -> None:
    features = support()
    values = PROBE(replace(features, n_classes=5), 0, 0).values
    assert not values[:, 3:].any()
    np.testing.assert_allclose(values.sum(1), 1, atol=1e-9)


def test_the_seed_changes_nothing() -> None:
    features = support()
    np.testing.assert_array_equal(PROBE(features, 0, 0).values, PROBE(features, 7, 0).values)


def test_each_test_row_is_predicted_alone() -> None:
    features = support()
    kept = np.flatnonzero((features.split == "train") | (np.arange(len(features.x)) >= 24))
    fewer = Features(
        features.x[kept],
        features.target[kept],
        features.split[kept],
        features.patient[kept],
        "classification",
        3,
    )
    np.testing.assert_allclose(
        PROBE(fewer, 0, 0).values, PROBE(features, 0, 0).values[-len(kept) + 15 :], atol=1e-12
    )


def test_a_support_without_targets_is_refused() -> None:
    features = support()
    with pytest.raises(ProbeError, match="training target is missing"):
        PROBE(replace(features, target=np.full(len(features.x), -1)), 0, 0)


def test_the_budget_is_patients_per_class() -> None:
    budget = getattr(PROBE, "budget")  # noqa: B009 (the protocol has no such attribute)
    assert (budget.unit, budget.sizes, budget.draws) == ("patients per class", (1, 5, 10, 20), 10)
    assert not budget.area and PROBE.kinds == ("classification",)
