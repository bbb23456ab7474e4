"""Training on a few of the patients: who is drawn, what is skipped, how curves are scored."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from tomoprobe.benchmark import evaluate, metrics, predictions
from tomoprobe.benchmark.budgets import plan
from tomoprobe.benchmark.compare import against, label_shares
from tomoprobe.benchmark.errors import ProbeError
from tomoprobe.benchmark.learning_curves import Runs, area, label_share
from tomoprobe.benchmark.splits import uses_cv
from tomoprobe.benchmark.statistics import mean_of_drawn
from tomoprobe.benchmark.types import Budget, Case, Features, Kind, Predictions, TaskCard

from .toy import CARD, case, cases

CV_CARD = replace(CARD, counts={"cases": 60, "patients": 60})
REGRESSION_CARD = replace(CARD, kind="regression", metric="mae", classes=())
PER_CLASS = Budget("patients per class", (1, 5, 15, 16), draws=4)
PERCENT = Budget("percent", (1, 10, 50, 100), draws=4, area=True)


@dataclass(frozen=True)
class Centroids:
    """Softmax of the distances to the class means; values: the first feature, shifted."""

    budget: Budget
    name: str = "centroids"
    title: str = "nearest mean"
    version: int = 1
    kinds: tuple[Kind, ...] = ("classification", "regression")

    def __call__(self, features: Features, seed: int, refits: int) -> Predictions:
        train, test = features.split == "train", features.split == "test"
        assert (train | test).all(), "nobody but the support and the test patients is handed over"
        x, y = features.x[train], features.target[train]
        if features.kind == "regression":
            values = features.x[test, 0] - x[:, 0].mean() + y.mean()
            return Predictions(values, np.empty((0, test.sum())), {})
        means = [x[y == k].mean(0) for k in range(features.n_classes)]
        near = np.stack([-((features.x[test] - m) ** 2).sum(1) for m in means], 1).astype(float)
        p = np.exp(near - near.max(1, keepdims=True))
        values = p / p.sum(1, keepdims=True)
        return Predictions(values, np.empty((0, *values.shape)), {})


def features_of(some: list[Case], noise: float = 1.0, seed: int = 0) -> np.ndarray:
    """Two features, the first of which tells the target, the noisier the worse."""
    rng = np.random.default_rng(seed)
    x = noise * rng.normal(size=(len(some), 2))
    x[:, 0] += [float(c.target) for c in some]  # type: ignore[arg-type]
    return x.astype(np.float32)


def evaluated(
    card: TaskCard, budget: Budget, noise: float = 1.0, seed: int = 0
) -> tuple[pd.DataFrame, predictions.Provenance]:
    some, probe = cases(card), Centroids(budget)
    table = evaluate.predict(card, some, features_of(some, noise, seed), probe)
    return table, predictions.Provenance(
        model="toy",
        model_sha="0" * 64,
        task=card.name,
        task_version=1,
        probe=probe.name,
        probe_version=1,
        kind=card.kind,
        width=2,
        cv=uses_cv(card),
        subset=False,
        seconds=1.0,
        device="cpu",
        software="test",
        dataset_sha="d",
        split_sha="s",
        area=evaluate.has_area(probe),
        skipped=evaluate.skipped_sizes(card, some, probe),
    )


# --- who is drawn ------------------------------------------------------------------------------


@pytest.mark.parametrize("card", [CARD, CV_CARD])
@pytest.mark.parametrize("budget", [PER_CLASS, PERCENT])
def test_supports_are_nested_train_patients_and_never_test_or_val(
    card: TaskCard, budget: Budget
) -> None:
    some = cases(card)
    drawn = plan(card, some, budget).supports
    assert drawn
    before: dict[tuple[int, int], set[int]] = {}
    for s in drawn:
        rows = set(s.train.tolist())
        assert before.get((s.draw, s.fold), set()) <= rows
        before[s.draw, s.fold] = rows
        assert not rows & set(s.test.tolist())
        if not uses_cv(card):
            assert {some[i].split for i in rows} == {"train"}
            assert {some[i].split for i in s.test} == {"test"}


def test_every_class_has_exactly_k_patients_with_all_their_cases() -> None:
    twice = [replace(c, patient=f"p{i // 4}_{i % 2}") for i, c in enumerate(cases())]
    for s in plan(CARD, twice, replace(PER_CLASS, sizes=(3,))).supports:
        patients = {twice[i].patient for i in s.train}
        assert Counter(p[-1] for p in patients) == {"0": 3, "1": 3}
        in_train = [i for i, c in enumerate(twice) if c.split == "train" and c.patient in patients]
        assert sorted(s.train) == in_train


def test_a_patient_with_images_of_both_classes_counts_for_both() -> None:
    both = [replace(c, patient=f"p{i // 2}") for i, c in enumerate(cases())]
    drawn = plan(CARD, both, replace(PER_CLASS, sizes=(1, 5))).supports
    for s in drawn:
        assert len({both[i].patient for i in s.train}) == s.size
        assert Counter(both[i].target for i in s.train) == {0: s.size, 1: s.size}


def test_draws_differ_and_a_new_patient_can_only_push_one_out() -> None:
    budget = replace(PER_CLASS, sizes=(5,))
    before = plan(CARD, cases(), budget).supports
    assert len({tuple(s.train) for s in before}) == 4
    more = [*cases(), case(1000, 1, "train")]
    for old, new in zip(before, plan(CARD, more, budget).supports, strict=True):
        assert len(set(old.train) - set(new.train)) <= 1


def test_a_size_that_cannot_be_filled_is_skipped_with_the_reason() -> None:
    found = plan(CARD, cases(), PER_CLASS)
    assert {s.size for s in found.supports} == {1, 5, 15}
    assert found.skipped == {16: "class 'dark' has 15 training patients, 16 are needed"}
    percent = plan(CARD, cases(), PERCENT)
    assert list(percent.skipped) == [1]
    assert "1 % of them are 0, at least 2 are needed" in percent.skipped[1]


def test_a_class_nobody_in_training_has_is_missed() -> None:
    card = replace(CARD, classes=("dark", "bright", "blue"))
    assert "'blue' has 0 training patients" in plan(card, cases(), PER_CLASS).skipped[1]


def test_all_the_labels_are_drawn_once_on_a_split_and_once_per_repeat_under_cv() -> None:
    everybody = replace(PERCENT, sizes=(100,))
    assert len(plan(CARD, cases(), everybody).supports) == 1
    assert {s.draw for s in plan(CV_CARD, cases(CV_CARD), everybody).supports} == set(range(4))


def test_under_cross_validation_draws_vary_the_test_side_too() -> None:
    drawn = plan(CV_CARD, cases(CV_CARD), replace(PERCENT, sizes=(100,))).supports
    tested = {s.draw: set() for s in drawn}
    for s in drawn:
        tested[s.draw].add(tuple(s.test))
    assert tested[0] != tested[1]
    assert all(
        sorted(i for part in parts for i in part) == list(range(60)) for parts in tested.values()
    )


def test_nothing_to_draw_is_an_error_that_says_why() -> None:
    with pytest.raises(ProbeError, match="16 are needed"):
        evaluated(CARD, replace(PER_CLASS, sizes=(16,)))


class Guarded(np.ndarray):
    """Features whose validation rows raise when they are read."""

    def __getitem__(self, key: object) -> np.ndarray:
        rows = np.arange(len(self))[key] if isinstance(key, np.ndarray) else np.arange(len(self))
        assert not np.isin(rows, np.arange(30, 40)).any(), "a validation row was read"
        return np.asarray(super().__getitem__(key))  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["few_shot", "label_efficiency"])
def test_the_val_side_is_never_read(name: str) -> None:
    from tomoprobe.benchmark import probes

    probe = replace(probes.get(name), budget=replace(PERCENT, sizes=(50,), draws=2))  # type: ignore[type-var]
    some = cases()
    x = features_of(some).view(Guarded)
    with pytest.raises(AssertionError, match="validation row"):
        x[np.arange(60)]
    assert len(evaluate.predict(CARD, some, x, probe)) == 40


# --- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", [CARD, CV_CARD, REGRESSION_CARD])
def test_every_metric_gets_a_row_per_size_and_one_for_the_area(card: TaskCard) -> None:
    table, about = evaluated(card, PERCENT)
    scores = evaluate.score(table, about)
    names = [m.name for m in metrics.for_kind(card.kind)]
    assert Counter(r.metric for r in scores.results) == dict.fromkeys(names, 5)
    mine = {r.shots: r for r in scores.results if r.metric == card.metric}
    assert set(mine) == {1, 10, 50, 100, None}
    assert mine[1].score is None
    for shots in (10, 50, None):
        row = mine[shots]
        assert row.score is not None and row.low is not None and row.high is not None
        assert row.low <= row.score <= row.high
        assert row.spread is not None and row.spread > 0
        assert (row.seed, row.n_test) == ("all", 60 if uses_cv(card) else 20)


def test_a_skipped_size_has_a_row_without_score_whose_flag_is_the_reason() -> None:
    scores = evaluate.score(*evaluated(CARD, PERCENT))
    for row, flags in zip(scores.results, scores.flags, strict=True):
        assert (row.shots == 1) == any(flag.startswith(evaluate.SKIPPED) for flag in flags)


def test_the_score_is_the_mean_over_draws_of_the_metric_of_each() -> None:
    table, about = evaluated(CARD, PERCENT)
    auroc = metrics.get("auroc")
    each = [
        auroc(part["target"].to_numpy(), part[["p0", "p1"]].to_numpy())
        for _, part in table[table["shots"] == 50].groupby("repeat")
    ]
    row = next(
        r for r in evaluate.score(table, about).results if (r.metric, r.shots) == ("auroc", 50)
    )
    assert row.score == pytest.approx(np.mean(each), abs=1e-12)
    assert row.spread == pytest.approx(np.std(each, ddof=1), abs=1e-12)


def test_stored_predictions_give_the_same_numbers_again() -> None:
    table, about = evaluated(CV_CARD, PERCENT)
    again = predictions.from_parquet(predictions.to_parquet(table, about))
    assert evaluate.score(*again) == evaluate.score(table, about)


def test_under_cross_validation_the_interval_is_flagged_and_wider_than_plain() -> None:
    table, about = evaluated(CV_CARD, PERCENT)
    scores = evaluate.score(table, about)
    assert all(
        "uncalibrated" in flags or flags[0].startswith(evaluate.SKIPPED) for flags in scores.flags
    )
    plain = evaluate.score(table, replace(about, cv=False)).results
    for wide, narrow in zip(scores.results, plain, strict=True):
        if wide.metric == "auroc" and wide.low is not None and wide.high is not None:
            assert narrow.low is not None and narrow.high is not None
            assert wide.high - wide.low > 1.1 * (narrow.high - narrow.low)


# --- curves ------------------------------------------------------------------------------------


def curve(*heights: float, sizes: tuple[int, ...] = (1, 10, 100), wobble: float = 0.0) -> dict:
    rng = np.random.default_rng(0)
    shift = wobble * rng.normal(size=500)  # all points of a curve move together
    return {
        size: Runs(np.array([h]), (h + shift)[None]) for size, h in zip(sizes, heights, strict=True)
    }


def test_the_area_of_a_flat_curve_is_its_height() -> None:
    assert area(curve(0.7, 0.7, 0.7)).once == pytest.approx([0.7])
    assert area(curve(0.7, 0.7, sizes=(5, 100))).once == pytest.approx([0.7])


def test_the_area_weighs_sizes_by_their_share_of_the_logarithmic_axis() -> None:
    assert area(curve(0.5, 0.7, 0.9)).once == pytest.approx([0.25 * 0.5 + 0.5 * 0.7 + 0.25 * 0.9])
    uneven = area(curve(0.5, 0.7, 0.9, sizes=(1, 2, 100))).once[0]
    by_numpy = np.trapezoid([0.5, 0.7, 0.9], np.log([1, 2, 100])) / np.log(100)
    assert uneven == pytest.approx(by_numpy)


AUROC, MAE = metrics.get("auroc"), metrics.get("mae")


def test_a_model_that_reaches_the_score_half_way_needs_half_the_logarithm_of_labels() -> None:
    share = label_share(AUROC, curve(0.6, 0.7, 0.8), curve(0.5, 0.6, 0.75)[100], 1000)
    assert share is not None
    assert share.share == pytest.approx(10**1.5)
    assert (share.smallest, share.largest) == (1, 100)


def test_for_errors_lower_is_reached() -> None:
    share = label_share(MAE, curve(9.0, 7.0, 5.0), curve(9.0, 8.0, 7.0)[100], 1000)
    assert share is not None and share.share == pytest.approx(10)


def test_a_score_that_is_never_reached_needs_infinitely_many_labels() -> None:
    share = label_share(AUROC, curve(0.5, 0.55, 0.6), curve(0.5, 0.6, 0.9)[100], 1000)
    assert share is not None and share.share == share.high == np.inf


def test_a_score_below_the_first_point_is_reached_with_the_smallest_size() -> None:
    share = label_share(AUROC, curve(0.8, 0.85, 0.9), curve(0.5, 0.6, 0.7)[100], 1000)
    assert share is not None and share.share == share.smallest == 1


def test_an_early_bump_does_not_count_as_reaching() -> None:
    bump = label_share(AUROC, curve(0.5, 0.8, 0.6, 0.8, sizes=(1, 5, 20, 100)), LEVEL_75, 1000)
    assert bump is not None and bump.share > 20


LEVEL_75 = Runs(np.array([0.75]), np.full((1, 500), 0.75))


def test_the_interval_of_the_share_holds_it_and_widens_with_the_noise() -> None:
    widths = []
    for wobble in (0.005, 0.02):
        share = label_share(AUROC, curve(0.6, 0.7, 0.8, wobble=wobble), LEVEL_75, 1000)
        assert share is not None
        assert share.low <= share.share <= share.high
        widths.append(np.log(share.high / share.low))
    assert widths[1] > 2 * widths[0]


def test_few_patients_and_cross_validation_widen_the_interval_of_the_share() -> None:
    ours = curve(0.6, 0.7, 0.8, wobble=0.01)

    def width(n_patients: int, factor: float) -> float:
        share = label_share(AUROC, ours, LEVEL_75, n_patients, factor)
        assert share is not None
        return float(np.log(share.high / share.low))

    assert width(1000, 2.0) == pytest.approx(2 * width(1000, 1.0), rel=0.02)
    assert width(2, 1.0) == pytest.approx(np.sqrt(2) * width(1000, 1.0), rel=0.02)


def test_a_draw_without_both_classes_spoils_only_itself() -> None:
    ours = curve(0.6, 0.7, 0.8, wobble=0.01)
    whole = label_share(AUROC, ours, LEVEL_75, 1000)
    ours[10].drawn[0, 7] = np.nan
    share = label_share(AUROC, ours, LEVEL_75, 1000)
    assert share is not None and whole is not None
    assert share.high == pytest.approx(whole.high, rel=0.05)
    ours[10].drawn[0, :100] = np.nan
    assert label_share(AUROC, ours, LEVEL_75, 1000) is None, "one of five draws is too many"


def test_an_undefined_training_spoils_only_the_draws_that_hold_it() -> None:
    drawn = np.ones((10, 400))
    drawn[3] = np.nan
    share = np.isfinite(mean_of_drawn(drawn, 0)).mean()
    assert share == pytest.approx(0.9**10, abs=0.06)


def test_a_share_under_cross_validation_says_that_its_interval_is_a_guess() -> None:
    stored = {name: evaluated(CV_CARD, PERCENT, seed=i) for i, name in enumerate("ab")}
    assert "uncalibrated" in label_shares("a", stored, "auroc")["b"].flags
    stored = {name: evaluated(CARD, PERCENT, seed=i) for i, name in enumerate("ab")}
    assert label_shares("a", stored, "auroc")["b"].flags == ()


def test_the_better_model_needs_fewer_labels_and_its_paired_difference_is_positive() -> None:
    stored = {
        "good": evaluated(CARD, PERCENT, noise=0.4),
        "bad": evaluated(CARD, PERCENT, noise=1.2, seed=1),
    }
    assert label_shares("bad", stored, "auroc")["good"].share < 50
    assert label_shares("good", stored, "auroc")["bad"].share > 50
    for shots in (None, 50):
        gap = against("bad", stored, "auroc", shots)["good"]
        assert gap.delta > 0 and gap.low <= gap.delta <= gap.high
    assert against("bad", stored, "auroc", 1) == {}
