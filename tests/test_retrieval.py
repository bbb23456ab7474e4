"""Retrieval: who is found, how it is scored, and what chance is."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from tomoprobe.benchmark import evaluate, metrics, probes
from tomoprobe.benchmark.cache import Extracted
from tomoprobe.benchmark.errors import ProbeError
from tomoprobe.benchmark.features import DataIdentity
from tomoprobe.benchmark.metrics.retrieval import RANKS, random_hit, random_precision
from tomoprobe.benchmark.probes.retrieve import ranked
from tomoprobe.benchmark.studies import Setting
from tomoprobe.benchmark.types import Case, TaskCard

from . import toy

CV_CARD = replace(toy.CARD, counts={"cases": 60, "patients": 30})
NAMES = ("map", *(f"recall_{k}" for k in RANKS))


class Known:
    """A cache that holds these embeddings."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = np.asarray(x, np.float32)

    def get(self, *_: object) -> Extracted:
        return Extracted(self.x, 0.0)


def retrieved(x: np.ndarray, cases: list[Case], card: TaskCard = toy.CARD) -> pd.DataFrame:
    setting = Setting(card, cases, toy.ToyEncoder(), Known(x), DataIdentity("", ""))  # type: ignore
    return probes.get("retrieve").run(setting).set_index("case")  # type: ignore[union-attr]


def score(name: str, table: pd.DataFrame) -> float:
    read = metrics.get(name).read(table)
    return metrics.get(name)(read.target, read.prediction)


def chance(name: str, table: pd.DataFrame) -> float:
    return metrics.get(name).chance(metrics.get(name).read(table).target)


def noise(n: int = 60, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


def two_scans_each() -> list[Case]:
    """30 patients with two scans of one class each."""
    return [
        toy.case(i, target=i // 2 % 2, split=None, patient=f"p{i // 2:02d}")  # type: ignore
        for i in range(60)
    ]


# --- one query ---------------------------------------------------------------------------------


def test_average_precision_by_hand() -> None:
    found = ranked(np.array([0.9, 0.1, 0.5, 0.3]), np.array([True, False, False, True]))
    assert found.ap == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.recall.tolist() == [1, 1, 1]
    late = ranked(np.array([0.9, 0.8, 0.7, 0.6]), np.array([False, False, True, False]))
    assert late.ap == pytest.approx(1 / 3)
    assert late.recall.tolist() == [0, 1, 1], "none at the first place, one among five"


def test_tied_scans_score_what_they_would_on_average_over_all_orders() -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        similarity = rng.integers(0, 3, 6).astype(float)
        relevant = np.r_[True, rng.random(5) < 0.4]
        precisions, hits = [], []
        for order in permutations(range(6)):
            hit = relevant[sorted(order, key=lambda i: -similarity[i])]
            precisions.append((np.cumsum(hit) / np.arange(1, 7))[hit].mean())
            hits.append([hit[:k].any() for k in RANKS])
        found = ranked(similarity, relevant)
        assert found.ap == pytest.approx(np.mean(precisions), abs=1e-12)
        assert found.recall == pytest.approx(np.mean(hits, axis=0), abs=1e-12)


def test_a_query_whose_class_nobody_else_has_is_left_out() -> None:
    assert np.isnan(ranked(np.ones(3), np.zeros(3, bool)).ap)
    cases = toy.cases()
    x = noise()
    whole = retrieved(x, cases)
    lonely = [replace(c, target=2) if c.id == "case045" else c for c in cases]
    card = replace(toy.CARD, classes=("dark", "bright", "strange"))
    table = retrieved(x, lonely, card)
    assert np.isnan(table.loc["case045", "ap"])  # type: ignore[arg-type]
    rest = whole.drop("case045")
    for name in NAMES:
        assert score(name, table) == pytest.approx(score(name, rest))


# --- who is asked --------------------------------------------------------------------------------


def test_test_scans_ask_train_and_val_and_nobody_else() -> None:
    cases, x = toy.cases(), noise()
    table = retrieved(x, cases)
    assert list(table.index) == [c.id for c in cases if c.split == "test"]
    assert set(table["gallery"]) == {40} and set(table["relevant"]) == {20}
    moved = x.copy()
    moved[-1] += 5
    again = retrieved(moved, cases)
    assert again.iloc[:-1].equals(table.iloc[:-1]), "a test scan changes nothing for another"


def test_without_a_split_everybody_asks_all_other_patients() -> None:
    cases = two_scans_each()
    table = retrieved(noise(), cases, CV_CARD)
    assert list(table.index) == [c.id for c in cases]
    assert set(table["gallery"]) == {58}, "neither the scan nor the other one of its patient"
    assert set(table["repeat"]) == {0}
    assert (table.groupby("patient")["fold"].nunique() == 1).all()
    assert table["fold"].nunique() == 30, "each patient has a gallery of its own"
    of_class = sum(c.target == 0 for c in cases)
    first = table[table["target"] == 0]
    assert set(first["relevant"]) == {of_class - 2}


def test_features_that_tell_the_patient_alone_find_no_class() -> None:
    who = np.repeat(noise(30, 200), 2, axis=0)  # both scans of a patient are the same
    table = retrieved(who, two_scans_each(), CV_CARD)
    assert score("recall_1", table) < 0.75
    assert score("map", table) == pytest.approx(chance("map", table), abs=0.05)


def test_features_that_tell_the_class_find_it() -> None:
    cases = toy.cases()
    x = noise() + 6.0 * np.array([[c.target] for c in cases])  # type: ignore[list-item]
    table = retrieved(x, cases)
    assert score("map", table) > 0.97
    assert score("recall_1", table) == 1


def test_one_scale_for_all_features() -> None:
    cases, x = toy.cases(), noise()
    stretched = x * 10.0 ** np.arange(8) + 100.0
    a, b = retrieved(x, cases), retrieved(stretched, cases)
    assert a["recall_5"].equals(b["recall_5"])
    assert a["ap"].to_numpy() == pytest.approx(b["ap"].to_numpy(), abs=1e-3)


def test_a_gallery_needs_somebody() -> None:
    alone = [replace(c, split="test") for c in toy.cases()]
    with pytest.raises(ProbeError, match="no train case"):
        retrieved(noise(), alone)


# --- scores --------------------------------------------------------------------------------------


def unequal() -> list[Case]:
    """60 cases, every fourth of class 1."""
    return [replace(c, target=int(i % 4 == 0)) for i, c in enumerate(toy.cases())]


@pytest.mark.parametrize("card", [toy.CARD, CV_CARD])
def test_features_that_say_nothing_score_exactly_chance(card: TaskCard) -> None:
    table = retrieved(np.ones((60, 4)), unequal(), card)
    for name in NAMES:
        assert score(name, table) == pytest.approx(chance(name, table), abs=1e-12)
    counts = table["relevant"] / table["gallery"]
    assert chance("recall_1", table) == pytest.approx(counts.groupby(table["target"]).mean().mean())


def test_noise_scores_near_chance() -> None:
    tables = [retrieved(noise(seed=s), unequal()) for s in range(20)]
    for name in NAMES:
        mean = np.mean([score(name, table) for table in tables])
        assert mean == pytest.approx(chance(name, tables[0]), abs=0.06)


def test_chance_of_a_random_order_by_enumeration() -> None:
    orders = set(permutations([True, True, False, False, False]))
    precision = [(np.cumsum(o) / np.arange(1, 6))[list(o)].mean() for o in map(np.array, orders)]
    assert random_precision(2, 5) == pytest.approx(np.mean(precision))
    for k in (1, 2, 4, 9):
        hit = np.mean([any(o[:k]) for o in orders])
        assert random_hit(2, 5, k) == pytest.approx(hit)


def test_a_frequent_class_counts_no_more_than_a_rare_one() -> None:
    target = np.array([[0, 9, 20]] * 3 + [[1, 9, 20]])
    found = metrics.get("map")(target, np.array([1.0, 1.0, 1.0, 0.0]))
    assert found == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_is_the_same_as_repeating_its_rows(name: str) -> None:
    metric = metrics.get(name)
    read = metric.read(retrieved(noise(), unequal()))
    counts = np.random.default_rng(0).integers(0, 3, (5, len(read.target)))
    values = metric(read.target, read.prediction, counts)
    for value, count in zip(values, counts, strict=True):
        target, prediction = (np.repeat(a, count, axis=0) for a in read)
        assert value == pytest.approx(metric(target, prediction))
    assert np.isnan(metric(read.target, read.prediction, np.zeros((1, len(counts[0])))))[0]


def test_it_is_scored_with_an_interval() -> None:
    cases = toy.cases()
    x = noise() + np.array([[c.target] for c in cases])  # type: ignore[list-item]
    table = retrieved(x, cases).reset_index()
    read = metrics.get("map").read(table)
    found = evaluate.statistics.score_interval(
        metrics.get("map"), read.target, read.prediction[None], table["patient"].to_numpy(str)
    )
    assert 0.5 < found.low < found.score < found.high < 1
