"""The label efficiency probe: the linear probe, with C chosen inside the support."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from tomoprobe.benchmark import probes
from tomoprobe.benchmark.probes._linear import PENALTIES, ridge_path
from tomoprobe.benchmark.probes.label_efficiency import support_folds
from tomoprobe.benchmark.types import Features, Kind

PROBE = probes.get("label_efficiency")


def support(
    kind: Kind = "classification", n: int = 40, width: int = 15, n_val: int = 0, signal: float = 1.0
) -> tuple[Features, np.ndarray]:
    """``n`` training rows of as many patients, ``n_val`` and 50 of test, and the test targets."""
    rng = np.random.default_rng(3)
    total = n + n_val + 50
    hidden = rng.normal(size=total)
    hidden[: n // 2], hidden[n // 2 : n] = -abs(hidden[: n // 2]), abs(hidden[n // 2 : n])
    x = rng.normal(size=(total, width)) + 5
    x[:, :3] += signal * hidden[:, None]
    side = np.array(["train"] * n + ["val"] * n_val + ["test"] * 50)
    answer = (hidden > 0).astype(np.int64) if kind == "classification" else 3 * hidden + 10
    target = np.where(side == "test", -1 if kind == "classification" else np.nan, answer)
    patient = np.array([f"p{i}" for i in range(total)])
    n_classes = 2 if kind == "classification" else 0
    features = Features(x.astype(np.float32), target, side, patient, kind, n_classes)
    return features, answer[side == "test"]


class Sealed(np.ndarray):
    """An array whose forbidden rows raise, however they are asked for."""

    forbidden: np.ndarray

    def __getitem__(self, key: Any) -> Any:
        rows = np.arange(len(self.forbidden))[key[0] if isinstance(key, tuple) else key]
        assert not self.forbidden[rows].any(), "a val row was read"
        return np.asarray(self)[key]

    def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("all rows were read")

    def __array_function__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("all rows were read")

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("all rows were read")


def sealed(array: np.ndarray, forbidden: np.ndarray) -> Sealed:
    view = array.view(Sealed)
    view.forbidden = forbidden
    return view


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("few_shot", "classification"),
        ("label_efficiency", "classification"),
        ("label_efficiency", "regression"),
    ],
)
def test_val_is_never_read(name: str, kind: Kind) -> None:
    features, _ = support(kind, n_val=20)
    val = features.split == "val"
    shut = replace(features, x=sealed(features.x, val), target=sealed(features.target, val))
    probe = probes.get(name)
    open_values = probe(support(kind, n_val=20)[0], 0, 0).values
    np.testing.assert_array_equal(probe(shut, 0, 0).values, open_values)
    with pytest.raises(AssertionError, match="read"):
        probes.get("linear")(shut, 0, 0)


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("width", [5, 90])
def test_it_is_the_linear_probe_at_the_chosen_penalty(kind: Kind, width: int) -> None:
    features, _ = support(kind, width=width)
    predictions = PROBE(features, 0, 0)
    train = features.split == "train"
    scaler = StandardScaler().fit(features.x[train].astype(float))
    rows = np.clip(scaler.transform(features.x.astype(float)), -10, 10)
    c = predictions.chosen["C"]
    if kind == "classification":
        model = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-9)
        wanted = model.fit(rows[train], features.target[train]).predict_proba(rows[~train])
    else:
        wanted = Ridge(1 / c).fit(rows[train], features.target[train]).predict(rows[~train])
    np.testing.assert_allclose(predictions.values, wanted, atol=1e-5)
    assert predictions.refits.shape == (0, *wanted.shape)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_noise_is_given_a_strong_penalty_and_signal_a_weak_one(kind: Kind) -> None:
    """Held-out patients decide: inside the training rows the weakest penalty always wins."""
    noise = PROBE(support(kind, 80, signal=0.0)[0], 0, 0).chosen["C"]
    signal = PROBE(support(kind, 80, signal=5.0)[0], 0, 0).chosen["C"]
    assert noise <= 0.01 < signal


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_two_patients_per_class_are_enough_to_learn(kind: Kind) -> None:
    features, answer = support(kind, 4, width=3, signal=8.0)
    values = PROBE(features, 0, 0).values
    known = answer if kind == "classification" else answer > 10
    assert roc_auc_score(known, values[:, 1] if values.ndim == 2 else values) > 0.9


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_single_patient_gives_the_prior_instead_of_an_error(kind: Kind) -> None:
    features, _ = support(kind, 4)
    one = replace(features, patient=np.where(features.split == "train", "p", features.patient))
    predictions = PROBE(one, 0, 0)
    assert predictions.chosen["C"] == PENALTIES[0]
    assert np.isfinite(predictions.values).all()


# --- folds -----------------------------------------------------------------------------------


def names(n: int) -> np.ndarray:
    return np.array([f"p{i}" for i in range(n)])


def test_folds_hold_whole_patients_out_and_everybody_once() -> None:
    patient = np.repeat(names(23), 3)
    folds = support_folds(patient, np.repeat(np.arange(23) % 2, 3), 0)
    assert len(folds) == 5
    for train, out in folds:
        assert not set(patient[train]) & set(patient[out])
        assert sorted([*train, *out]) == list(range(69))
    assert sorted(np.concatenate([out for _, out in folds])) == list(range(69))


@pytest.mark.parametrize("sizes", [(2, 2), (2, 3), (2, 9), (3, 3, 3), (2, 40), (2, 5, 7, 30)])
@pytest.mark.parametrize("seed", range(4))
def test_every_training_part_has_every_class_of_two_patients(
    sizes: tuple[int, ...], seed: int
) -> None:
    label = np.repeat(np.arange(len(sizes)), sizes)
    folds = support_folds(names(len(label)), label, seed)
    assert len(folds) == min(5, max(sizes))
    held_out = [len(out) for _, out in folds]
    assert max(held_out) - min(held_out) <= 1
    for train, _ in folds:
        assert set(label[train]) == set(label)


def test_two_patients_per_class_are_held_out_in_balanced_pairs() -> None:
    for seed in range(5):
        label = np.array([0, 0, 1, 1])
        for train, out in support_folds(names(4), label, seed):
            assert sorted(label[train]) == sorted(label[out]) == [0, 1]


def test_a_fold_that_lacks_a_class_does_not_vote_unless_there_is_no_other() -> None:
    label = np.array([0] * 9 + [1])
    folds = support_folds(names(10), label, 0)
    assert len(folds) == 4 and all(9 in train for train, _ in folds)
    assert len(support_folds(names(2), np.array([0, 1]), 0)) == 0
    assert len(support_folds(names(4), np.arange(4) // 2 * np.array([1, 1, 1, 2]), 0)) > 0


def test_folds_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    patient, label = names(30), np.arange(30) % 3
    turned = np.random.default_rng(0).permutation(30)

    def parts(rows: np.ndarray, seed: int) -> set[frozenset[str]]:
        folds = support_folds(patient[rows], label[rows], seed)
        return {frozenset(patient[rows][out]) for _, out in folds}

    everybody = np.arange(30)
    assert parts(everybody, 0) == parts(turned, 0)
    assert parts(everybody, 0) != parts(everybody, 1)


def test_a_patient_with_cases_of_two_classes_is_kept_together() -> None:
    patient = np.array(["a", "a", "b", "b", "c", "d", "e", "f"])
    label = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    folds = support_folds(patient, label, 0)
    assert folds
    for train, out in folds:
        assert not set(patient[train]) & set(patient[out])
        assert set(label[train]) == {0, 1}


# --- ridge -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "width"), [(20, 50), (50, 20), (30, 30)])
def test_the_ridge_path_is_scikit_learns_ridge(n: int, width: int) -> None:
    rng = np.random.default_rng(0)
    x, out, y = rng.normal(size=(n, width)), rng.normal(size=(9, width)), rng.normal(size=n) + 4
    x[:, 1] = x[:, 0]
    weight = rng.integers(0, 3, n)
    for w in (None, weight):
        wanted = [Ridge(1 / c, solver="svd").fit(x, y, w).predict(out) for c in PENALTIES]
        np.testing.assert_allclose(ridge_path(x, y, PENALTIES, out, w), wanted, atol=1e-7)


def test_the_budget_is_a_share_of_the_training_patients() -> None:
    budget = getattr(PROBE, "budget")  # noqa: B009 (the protocol has no such attribute)
    assert budget.unit == "percent" and budget.sizes == (1, 2, 5, 10, 25, 50, 100)
    assert budget.draws == 10 and budget.area
    assert PROBE.kinds == ("classification", "regression")
