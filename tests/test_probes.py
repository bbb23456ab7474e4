"""Every probe: right on an oracle, at chance on noise, blind to what it may not see."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from tomoprobe.benchmark import probes
from tomoprobe.benchmark.errors import ProbeError, UnknownNameError
from tomoprobe.benchmark.studies import Study, cost_of
from tomoprobe.benchmark.types import Features, Kind, Probe

SERVED = [
    (name, kind)
    for name in probes.names()
    for kind in probes.get(name).kinds
    if not isinstance(probes.get(name), Study)  # those are swept in test_studies
]


def made(
    kind: Kind, *, n: int = 240, width: int = 12, signal: float = 1.0, val: bool = True
) -> tuple[Features, np.ndarray]:
    """Gaussian features whose first column carries the target; and the targets of test."""
    rng = np.random.default_rng(5)
    hidden = rng.normal(size=n)
    x = rng.normal(size=(n, width)).astype(np.float32)
    x[:, 0] = signal * hidden + (0.05 if signal else 1) * x[:, 0]
    target = (hidden > 0).astype(np.int64) if kind == "classification" else 3 * hidden + 10
    side = np.array(["train", "val" if val else "train", "test"])[np.arange(n) % 3]
    masked = np.where(side == "test", -1 if kind == "classification" else np.nan, target)
    patient = np.array([f"p{i}" for i in range(n)])
    n_classes = 2 if kind == "classification" else 0
    return Features(x, masked, side, patient, kind, n_classes), target[side == "test"]


def quality(kind: Kind, target: np.ndarray, values: np.ndarray) -> float:
    if kind == "classification":
        return float(roc_auc_score(target, values[:, 1]))
    return float(np.corrcoef(target, values)[0, 1])


@pytest.mark.parametrize(("name", "kind"), SERVED)
@pytest.mark.parametrize("val", [True, False])
def test_an_oracle_scores_near_one(name: str, kind: Kind, val: bool) -> None:
    features, target = made(kind, val=val)
    hidden = features.x[:, :1]
    # many soft steps: direction alone, which is all that a cosine sees, tells the target
    oracle = replace(features, x=np.tanh(hidden - np.linspace(-2, 2, 9)).astype(np.float32))
    values = probes.get(name)(oracle, 0, 3).values
    assert quality(kind, target, values) > 0.95


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_noise_scores_at_chance(name: str, kind: Kind) -> None:
    features, target = made(kind, n=900, signal=0.0)
    values = probes.get(name)(features, 0, 0).values
    chance = 0.5 if kind == "classification" else 0.0
    if values.std(0).max() > 0:
        assert abs(quality(kind, target, values) - chance) < 0.13


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_two_runs_agree_and_refits_differ(name: str, kind: Kind) -> None:
    features, _ = made(kind, signal=0.5)
    first, second = (probes.get(name)(features, 0, 4) for _ in range(2))
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.refits, second.refits)
    assert first.refits.shape == (4, *first.values.shape)
    assert np.ptp(first.refits, axis=0).max() > 0


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_test_rows_cannot_influence_one_another(name: str, kind: Kind) -> None:
    features, _ = made(kind)
    values = probes.get(name)(features, 0, 0).values
    rows = np.flatnonzero(features.split == "test")
    x = features.x.copy()
    x[rows[1:]] = 1e3
    again = probes.get(name)(replace(features, x=x), 0, 0).values
    np.testing.assert_allclose(again[0], values[0], rtol=1e-9)


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_more_features_than_patients_are_served(name: str, kind: Kind) -> None:
    features, target = made(kind, n=60, width=300, signal=3.0)
    values = probes.get(name)(features, 0, 2).values
    assert np.isfinite(values).all() and len(values) == len(target)


@pytest.mark.parametrize("name", [n for n, kind in SERVED if kind == "classification"])
def test_probabilities_sum_to_one(name: str) -> None:
    features, _ = made("classification")
    predictions = probes.get(name)(features, 0, 3)
    np.testing.assert_allclose(predictions.values.sum(-1), 1, atol=1e-9)
    np.testing.assert_allclose(predictions.refits.sum(-1), 1, atol=1e-9)


@pytest.mark.parametrize("name", [n for n, kind in SERVED if kind == "classification"])
def test_a_class_that_train_lacks_gets_a_probability(name: str) -> None:
    features, _ = made("classification")
    target = np.where(features.target == 1, 0, features.target)
    one_class = replace(features, target=target)
    values = probes.get(name)(one_class, 0, 2).values
    assert values.shape[1] == 2 and (values[:, 0] >= 0.5).all()


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_a_side_without_cases_is_refused(name: str, kind: Kind) -> None:
    features, _ = made(kind)
    with pytest.raises(ProbeError, match="no test case"):
        probes.get(name)(replace(features, split=np.full(len(features.x), "train")), 0, 0)


def test_the_linear_probe_is_scikit_learns_regression_at_the_chosen_penalty() -> None:
    for kind in ("classification", "regression"):
        features, _ = made(kind, signal=0.5)
        predictions = probes.get("linear")(features, 0, 0)
        scaler = StandardScaler().fit(features.x[features.split == "train"].astype(float))
        train, test = (
            scaler.transform(features.x[features.split == side].astype(float))
            for side in ("train", "test")
        )
        target = features.target[features.split == "train"]
        c = predictions.chosen["C"]
        if kind == "classification":
            wanted = (
                LogisticRegression(C=c, tol=1e-9, max_iter=5000)
                .fit(train, target)
                .predict_proba(test)
            )
        else:
            wanted = Ridge(1 / c).fit(train, target).predict(test)
        np.testing.assert_allclose(predictions.values, wanted, rtol=1e-3, atol=1e-4)


def test_an_unknown_probe_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'linear'"):
        probes.get("linaer")


@pytest.mark.parametrize("name", probes.names())
def test_every_probe_says_what_it_is(name: str) -> None:
    probe = probes.get(name)
    assert isinstance(probe, Probe | Study)
    assert probe.name == name and probe.version >= 1 and probe.title and probe.kinds
    cost = cost_of(probe)
    assert cost.endswith(".") and any(map(str.isdigit, cost)), "a sentence with a number"
    assert "GPU" in cost, "and whether it was measured on one"
